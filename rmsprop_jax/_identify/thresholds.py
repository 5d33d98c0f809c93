"""The thresholds of `identify`, each with its reason."""

import math

# --- What is recorded

# Fewer steps than there are hyperparameters say nothing.
LEAST_STEPS = 4

# How many elements are looked at: enough for all hyperparameters and a learning rate of
# each step, and few enough to try tens of thousands of rules and numbers in seconds.
ELEMENTS = 64
# With a state from before the recording, each element has three numbers more to fit.
ELEMENTS_WITH_STATE = 10

# With more leaves than this, matrices are only told from vectors.
MAX_LEAVES = 16
# How many leaves are tried by themselves if nothing explains all of them, and after how
# many unexplained ones the trials end: each takes a second or two.
MAX_LEAVES_ALONE = 6
MAX_LEAVES_UNEXPLAINED = 2

# Residuals below this share of an update count the same, whatever the rounding of the
# parameter. Otherwise a parameter near 0, whose updates are exact,
# would outweigh all others.
SHARE_OF_UPDATE = 1e-3
# The share of an update that is left in the next one, with the usual momentum.
KEPT_OF_UPDATE = 0.9

# --- What counts as explained

# The error of an optimizer's own arithmetic, in last digits of an update: it computes
# some ten numbers one after the other, in an order that we don't know.
ROUNDINGS_OF_ARITHMETIC = 3.0
# A centered rule that subtracts squares loses more of them.
ROUNDINGS_OF_CANCELLATION = 32.0

# How many times the expected rounding the right rule may leave unexplained. It leaves
# 0.7 of it where a parameter is rounded once per step, because we expect that both ends
# of an update are; stochastic rounding leaves 1.
ROUNDINGS = 1.25
# If rounding may leave more than this, it hides the rule, so that nothing is said to be
# explained. Measured: of random bfloat16 recordings, all 12 in which rounding may leave
# 0.1 to 0.31 were answered right, with up to 22 rivals, and the two with 0.57 and 4
# were not.
HIDING_ROUNDING = 0.25
# With less than this of it, nothing else is looked for.
CLEAR = 0.75
# Coarser rounding than this may hide what else there is.
FINE_ROUNDING = 1e-4

# Caution undoes steps, and so does rounding. If it is coarser than this, the two can't
# be told apart.
MAX_ROUNDING_OF_CAUTION = 1e-3

# --- Which rules are alike

# Costs differ by chance. The learning rates of all steps are free, so of two rules that
# are one while the learning rate is constant, either may explain more: by a few parts
# in as many as there are elements.
ALIKE_PER_ELEMENT = 3.0
# A number that is not there explains noise: by one part in as many as there are
# residuals, and hardly ever by the square of this many.
SIGMAS = 5.0
# But at least by this share. Rounding is not the noise that statistics assumes: it
# depends on the parameter, so that in bfloat16 a weight decay that is not there
# explains some of it.
SYSTEMATIC = 0.25
# The cost with the best learning rate of each step by itself may be this many times too
# large, compared with the best of all steps together: by 1/(1 − μ²) parts in as many as
# there are elements.
GREEDY = 3.0

# If nothing explains the run, so many of the nearest rules are enough, to be shown and
# to be tried again.
FEW = 4

# --- Numbers that nobody uses

# An ε of e² times the largest gradient leaves nothing of an RMSProp but SGD.
OVERWHELMING_EPS = 2.0
# log((1 − α)/α) of α between 0.02 and 0.9995.
LOGITS_OF_ALPHA = (math.log(5e-4), math.log(49))
COMMON_ALPHAS = (0.9, 0.95, 0.99, 0.999)

# --- How fits are read

# A leaf with less than this share of the largest weight decay has none: what is left is
# chance.
SHARE_OF_DECAY = 0.3
# A decoupled weight decay that can't be seen is not worth a sentence if it is less than
# any default of one: optax.adamw's is the smallest.
HIDDEN_DECAY = 1e-4
# If learning rates change more often than this, they are not written one by one.
MAX_PIECES = 4
# At most so many steps are tried as starts of a piece, those where it changes most.
MAX_STARTS = 200
# A number with a larger relative error is said to be uncertain.
UNCERTAIN = 0.02
# Below this share of the updates, noise in the gradients may be what is left.
NOISE = 0.3
# Above it, the gradients may be others than those of the run.
UNRELATED = 0.6
# If the updates of the first step are no increasing function of the gradients up to
# this share, it may not be the first of the run. From the middle of runs, it was 0.3
# and more; from the start of runs, it is rounding.
ODD_FIRST_STEP = 0.1
