"""Which part of the original does the output of a pipeline show?"""

from torchrelabel.following.declare import follows as follows
from torchrelabel.following.declare import moves_no_pixels as moves_no_pixels
from torchrelabel.following.follow import Followed as Followed
from torchrelabel.following.follow import follow as follow
