"""Slow, obvious float64 NumPy versions of what the library computes fast. Nothing here imports gls_jax."""

import itertools

import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.stats


def rates(p, q):
    """`M_j = sum_i max(q_i, q_j p_i / p_j)` by the double loop; infinite where `p_j = 0`."""
    return np.array(
        [
            sum(max(qi, qj * pi / pj) for pi, qi in zip(p, q, strict=True)) if pj else np.inf
            for pj, qj in zip(p, q, strict=True)
        ]
    )


def gls_acceptance(laws, q):
    """Acceptance of GLS for the list of draft laws `laws` (K of them), by adaptive quadrature of its definition.

    Given that stream k brings target j at time m (clock `m q_j`), stream k drafts j unless a competitor i with
    `q_j / p_j > q_i / p_i` arrives between; another stream l drafts j if its own race says so, given that nothing in it
    reaches the target before m.
    """

    def drafts_other(p, j, m):
        """P(stream drafts something else than j, and no item reaches the target before m)."""
        alone = np.exp(-m)
        if p[j] == 0:
            return alone
        start = q[j] / p[j]
        # j drafted at draft time t = S_j / p_j; every item i must wait max(t p_i, m q_i).
        integrand = lambda u: np.exp(-m * np.maximum(u * p, q).sum())  # noqa: E731
        edges = np.unique(
            np.concatenate([[start], [q[i] / p[i] for i in range(len(p)) if p[i] and q[i] / p[i] > start]])
        )
        inner = sum(scipy.integrate.quad(integrand, a, b)[0] for a, b in itertools.pairwise(edges))
        last = edges[-1]
        outside = q[p == 0].sum()
        inner += np.exp(-m * (last + outside)) / m if m else np.inf
        return alone - m * p[j] * inner

    def wins_without(p, j, m):
        """Density factor: target j arrives in this stream at m, and this stream drafts something else."""
        if p[j] == 0:
            return np.exp(-m)
        return np.exp(-m) - np.exp(-m * np.maximum(q[j] / p[j] * p, q).sum())

    def missed(m):
        total = 0.0
        for j in range(len(q)):
            others = np.array([drafts_other(p, j, m) for p in laws])
            wins = np.array([wins_without(p, j, m) for p in laws])
            total += q[j] * sum(wins[k] * np.prod(np.delete(others, k)) for k in range(len(laws)))
        return total

    value = sum(
        scipy.integrate.quad(missed, a, b, epsabs=1e-9)[0] for a, b in ((1e-12, 0.1), (0.1, 1), (1, 6), (6, 40))
    )
    return 1 - value


def topk_acceptance(p, q, k):
    """Acceptance of coupled Gumbel top-K: Poisson-binomial counts by convolution, quadrature over the clock."""

    def given(j, theta):
        count = np.array([1.0])
        for i in range(len(p)):
            enter = 1 - np.exp(-theta * max(q[j] * p[i] / p[j] - q[i], 0))
            count = np.convolve(count, [1 - enter, enter])
        return count[:k].sum()

    total = 0.0
    for j in range(len(q)):
        if p[j] > 0 and q[j] > 0:
            for a, b in itertools.pairwise((0, 1e-4, 1e-2, 0.3, 2, 60)):  # the integrand can fall within q_j / p_j of 0
                total += q[j] * scipy.integrate.quad(lambda t, j=j: np.exp(-t) * given(j, t), a, b)[0]
    return total


def optimum_iid(p, q, k):
    """Optimal acceptance for K i.i.d. drafts as a linear program over (list of drafts, emitted token)."""
    lists = list(itertools.product(range(len(p)), repeat=k))
    size = len(q)
    weight = np.array([np.prod([p[i] for i in drafts]) for drafts in lists])
    gain = np.array([[1.0 if i in drafts else 0.0 for i in range(size)] for drafts in lists])
    rows = np.kron(np.eye(len(lists)), np.ones(size))
    columns = np.kron(np.ones(len(lists)), np.eye(size))
    solved = scipy.optimize.linprog(
        -gain.ravel(),
        A_ub=np.vstack([rows, columns]),
        b_ub=np.concatenate([weight, q]),
        bounds=(0, None),
        method="highs",
    )  # inequalities: what is left over is coupled without a gain
    return -solved.fun


def gls_trials(laws, q, trials, rng):
    """Matches in `trials` brute-force runs of Algorithm 1."""
    hits = 0
    laws = np.asarray(laws)
    with np.errstate(divide="ignore"):
        for size in [2**15] * (trials // 2**15) + [trials % 2**15]:
            clocks = rng.standard_exponential((size, *laws.shape))
            drafts = (clocks / laws).argmin(-1)
            target = (clocks.min(1) / q).argmin(-1)
            hits += int((drafts == target[:, None]).any(1).sum())
    return hits


def chi_square(counts, law):
    """p-value that counts came from the law; items expected less than 5 times are pooled, impossible ones forbidden."""
    counts, law = np.asarray(counts, float), np.asarray(law, float)
    if counts[law == 0].sum() > 0:
        return 0.0
    expected = law / law.sum() * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    if len(observed) < 2:
        return 1.0
    return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum(), len(observed) - 1)


def binomial(hits, trials, probability):
    """Two-sided p-value of a count; the probability may be 0 or 1 up to float32 rounding."""
    low, high = max(probability - 1e-6, 0), min(probability + 1e-6, 1)
    return min(1, 2 * min(scipy.stats.binom.cdf(hits, trials, low), scipy.stats.binom.sf(hits - 1, trials, high)))
