"""The ways of decoding, under the name of their first user. They lie in `decoders.speculative.ways`; other drafters use them too."""

from decoders.speculative.ways import Call as Call
from decoders.speculative.ways import DraftRounds as DraftRounds
from decoders.speculative.ways import LookupRounds as LookupRounds
from decoders.speculative.ways import OutputText as OutputText
from decoders.speculative.ways import PlainSteps as PlainSteps
from decoders.speculative.ways import Progress as Progress
from decoders.speculative.ways import Way as Way
from decoders.speculative.ways import rounds_with as rounds_with
from decoders.speculative.ways import with_output as with_output
