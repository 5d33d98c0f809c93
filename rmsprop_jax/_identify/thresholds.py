"""The thresholds of `identify`, each with its reason."""

import math

# --- What is recorded

# With fewer steps than hyperparameters, nothing can be determined.
LEAST_STEPS = 4

# How many elements are used: enough for all hyperparameters and a learning rate for
# each step, and few enough to try tens of thousands of rules and numbers in seconds.
ELEMENTS = 64
# If the state before the recording is fitted, each element has three more numbers.
ELEMENTS_WITH_STATE = 10

# With more leaves than this, only matrices and vectors are distinguished.
MAX_LEAVES = 16
# How many leaves are tried separately if nothing explains all of them, and after how
# many unexplained ones the trials end. Each takes a second or two.
MAX_LEAVES_ALONE = 6
MAX_LEAVES_UNEXPLAINED = 2

# Residuals below this share of an update count the same, whatever the rounding of the
# parameter. Otherwise a parameter near 0, whose updates are exact,
# would outweigh all others.
SHARE_OF_UPDATE = 1e-3
# The share of an update that remains in the next one, with the usual momentum.
KEPT_OF_UPDATE = 0.9

# --- What counts as explained

# The error of an optimizer's own arithmetic, in last digits of an update: it computes
# about ten numbers one after the other, in an unknown order.
ROUNDINGS_OF_ARITHMETIC = 3.0
# A centered rule that subtracts squares loses more digits.
ROUNDINGS_OF_CANCELLATION = 32.0

# How many times the expected rounding the right rule may leave unexplained. It leaves
# 0.7 of it where a parameter is rounded once per step, because we expect that both ends
# of an update are; stochastic rounding leaves 1.
ROUNDINGS = 1.25
# If rounding may leave more than this, it hides the rule, so no run counts as
# explained. Measured: of random bfloat16 recordings, all 12 in which rounding may leave
# 0.1 to 0.31 were answered right, with up to 22 rivals, and the two with 0.57 and 4
# were not.
HIDING_ROUNDING = 0.25
# Below this share of it, the search stops.
CLEAR = 0.75
# Coarser rounding than this may hide extensions.
FINE_ROUNDING = 1e-4

# Caution undoes steps, and so does rounding. If it is coarser than this, the two can't
# be told apart.
MAX_ROUNDING_OF_CAUTION = 1e-3

# --- Which rules are alike

# Costs differ by chance. Because the learning rates of all steps are free, either of
# two rules that are the same for a constant learning rate may explain more, by a few
# times 1/(number of elements).
ALIKE_PER_ELEMENT = 3.0
# A superfluous number explains some noise: typically 1/(number of residuals) of it, and
# hardly ever the square of this many times as much.
SIGMAS = 5.0
# But a cost may always be larger by this share. Rounding is not the noise that
# statistics assumes: it depends on the parameter, so in bfloat16 a weight decay that
# does not exist explains some of it.
SYSTEMATIC = 0.25
# The cost with the best learning rate of each step alone may be too large compared with
# the best of all steps together: by about 1/(1 − μ²) over the number of elements. This
# is the largest factor that is allowed for.
GREEDY = 3.0

# If nothing explains the run, this many of the nearest rules are shown and tried again.
FEW = 4

# --- Numbers that nobody uses

# An ε of e² times the largest gradient leaves nothing of an RMSProp but SGD.
OVERWHELMING_EPS = 2.0
# log((1 − α)/α) of α between 0.02 and 0.9995.
LOGITS_OF_ALPHA = (math.log(5e-4), math.log(49))
COMMON_ALPHAS = (0.9, 0.95, 0.99, 0.999)

# --- How fits are read

# A leaf with less than this share of the largest weight decay counts as having none.
SHARE_OF_DECAY = 0.3
# A hidden decoupled weight decay is mentioned only if it may be as large as the
# smallest default, which is optax.adamw's.
HIDDEN_DECAY = 1e-4
# With more changes than this, learning rates are not written one by one.
MAX_PIECES = 4
# At most this many steps are tried as starts of a piece: those with the largest
# changes.
MAX_STARTS = 200
# A number with a larger relative error is called uncertain.
UNCERTAIN = 0.02
# A smaller unexplained share of the updates may be noise in the gradients.
NOISE = 0.3
# With a larger one, the gradients may be those of another run.
UNRELATED = 0.6
# If the updates of the first step are no increasing function of the gradients up to
# this share, it may not be the first of the run. From the middle of runs, the share was
# 0.3 and more (but 0 under a tight clip with an initial second moment of 1, where the
# hint is not given); from the start of runs, it is rounding.
ODD_FIRST_STEP = 0.1
