"""The guard, under the name of its first user. It lies in `decoders.speculative.guard`, because other drafters use it too."""

from decoders.speculative.guard import ALLOWANCE as ALLOWANCE
from decoders.speculative.guard import CHUNK as CHUNK
from decoders.speculative.guard import TRYING as TRYING
from decoders.speculative.guard import Account as Account
from decoders.speculative.guard import Known as Known
