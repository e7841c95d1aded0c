"""The definition of a backend: cases that every backend passes, each the proof of one guarantee to its users.

Here live names only. Three lines run it over a backend of your own::

    @pytest.mark.parametrize("case", cases(), ids=str)
    def test_backend(case):
        run(case, Place(lambda **options: AsyncCoordinator("toy://test", **options)))

What the backend says it cannot do (its ``capabilities``) is skipped. One claim cannot be checked here: ``"processes"``,
for everything is played in one.
"""

from . import asking as asking  # each room registers its cases
from . import deadlocks as deadlocks
from . import delivering as delivering
from . import electing as electing
from . import ending as ending
from . import enqueueing as enqueueing
from . import exclusion as exclusion
from . import fanning as fanning
from . import grouping as grouping
from . import handling as handling
from . import hearing as hearing
from . import inheriting as inheriting
from . import jobs as jobs
from . import keeping as keeping
from . import leaving as leaving
from . import life as life
from . import loss as loss
from . import observing as observing
from . import publishing as publishing
from . import quitting as quitting
from . import receiving as receiving
from . import running as running
from . import semaphores as semaphores
from . import sets as sets
from . import shared as shared
from . import sharing as sharing
from . import showing as showing
from . import sourcing as sourcing
from . import storing as storing
from . import turning as turning
from . import wanting as wanting
from .suite import Case, Fault, Need, Place, Skipped, Stage, Venue, cases, run

__all__ = ["Case", "Fault", "Need", "Place", "Skipped", "Stage", "Venue", "cases", "run"]
