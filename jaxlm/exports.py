"""Names that a package imports on first use, so that importing it, and showing a command's help, costs nothing."""

from collections.abc import Callable, Collection, Mapping
import importlib
import sys


def lazily(package: str, public: Mapping[str, str], modules: Collection[str] = ()) -> tuple[Callable, Callable]:
  """Returns a package's `__getattr__` and `__dir__`.

  Args:
    package: `__name__` of the package.
    public: public name -> the module that defines it.
    modules: names of submodules that are imported on first use.
  """

  def get(name: str):
    if name in modules:
      return importlib.import_module(f'{package}.{name}')
    if name in public:
      return getattr(importlib.import_module(public[name]), name)
    raise AttributeError(f'module {package!r} has no attribute {name!r}')

  def names() -> list[str]:
    return sorted([*vars(sys.modules[package]), *public, *modules])

  return get, names
