"""The assignment benchmark runs, and its solvers agree."""

from benchmarks import assignment, report


def test_runs_and_compares_all_solvers(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  assignment.main(assignment.Config(batches=(2,), lengths=(6,), repeats=1))
  printed = capsys.readouterr().out
  assert (tmp_path / 'assignment.json').exists()
  assert all(name in printed for name in ('uniform', 'tokens', 'jaxlm ms', 'SciPy by callback ms', 'speed, Optax = 1'))
