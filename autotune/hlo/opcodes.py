"""Opcodes by what they cost."""

FREE = frozenset(
    "add-dependency after-all bitcast constant domain get-tuple-element opt-barrier parameter partition-id replica-id "
    "tuple".split()
)
"""Names for values that are already there."""

KNOWN = frozenset(
    "abs acos acosh add and asin asinh atan atan2 atanh batch-norm-grad batch-norm-inference batch-norm-training "
    "bitcast-convert broadcast cbrt ceil cholesky clamp compare complex concatenate convert convolution "
    "copy cosh cosine count-leading-zeros custom-call divide dot dynamic-reshape dynamic-slice dynamic-update-slice "
    "erf exponential exponential-minus-one fft floor fusion gather get-dimension-size imag iota is-finite log "
    "log-plus-one logistic map maximum minimum mulhi multiply negate not or pad popcnt power real reduce "
    "reduce-precision reduce-window remainder reshape reverse rng rng-bit-generator rng-get-and-update-state "
    "round-nearest-afz round-nearest-even rsqrt scan scatter select select-and-scatter set-dimension-size shift-left "
    "shift-right-arithmetic shift-right-logical shuffle sign sine sinh slice sort sqrt stochastic-convert subtract "
    "tan tanh topk transpose triangular-solve xor".split()
)
"""These run on the core; any other is read as such too, and counted in the warnings."""
