"""Names for the arrays that a scheme's functions take and return, with their shapes.

`K` is the number of drafts, `N` of tokens, `C` of list lengths, and `n` of the nodes of a draft
tree.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Array, Bool, Float, Int

# The drafted tokens, `[K]`.
Drafts: TypeAlias = Int[Array, " K"]

# Which drafts may still be accepted, `[K]`.
Active: TypeAlias = Bool[Array, " K"]

# One token, `[]`.
Token: TypeAlias = Int[Array, ""]

# The tokens that a distribution is given for, in increasing order, where it is not given for all.
Tokens: TypeAlias = Int[Array, " N"]

# Draft log-probabilities: `[N]`, or `[K, N]` where each draft has its own distribution.
DraftLogProbs: TypeAlias = Float[Array, "*k N"]

# A number for each token, `[N]`: target log-probabilities, a distribution.
Vector: TypeAlias = Float[Array, " N"]

Scalar: TypeAlias = Float[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
BoolScalar: TypeAlias = Bool[Array, ""]

# A flag for each node of a tree, `[n]`.
NodeFlags: TypeAlias = Bool[Array, " n"]

# A number for the root and each node of a tree, `[n + 1]`.
RowValues: TypeAlias = Float[Array, " n+1"]

# Whether any of the first 1, 2, ..., K drafts is accepted, `[K]`.
AcceptedByLength: TypeAlias = Bool[Array, " K"]

# The acceptance for each of several list lengths, `[C]`.
Acceptances: TypeAlias = Float[Array, " C"]

# Probability that J' of J active drafts equal the emitted token, `[K + 1, K + 1]`.
Kernel: TypeAlias = Float[Array, "J J"]

# Log-probabilities for each node of a tree, `[n, N]`.
NodeLogProbs: TypeAlias = Float[Array, "n N"]

# Log-probabilities for the root and each node of a tree, `[n + 1, N]`.
RowLogProbs: TypeAlias = Float[Array, "n+1 N"]
