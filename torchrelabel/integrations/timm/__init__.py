"""Label maps in timm's loaders and training script; all that is changed in timm is changed here."""

from torchrelabel.integrations.timm.launcher import check_arguments as check_arguments
from torchrelabel.integrations.timm.launcher import run_script as run_script
from torchrelabel.integrations.timm.launcher import training_datasets_wrapped as training_datasets_wrapped
from torchrelabel.integrations.timm.soft_targets import accept_soft_targets as accept_soft_targets
from torchrelabel.integrations.timm.soft_targets import refuse_soft_targets as refuse_soft_targets
from torchrelabel.integrations.timm.stream import LabelMapStream as LabelMapStream
from torchrelabel.integrations.timm.token_scores import TokenScores as TokenScores
from torchrelabel.integrations.timm.token_scores import with_token_scores as with_token_scores
