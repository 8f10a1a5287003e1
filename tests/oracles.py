"""Slow and obvious float64 versions of what the library computes fast; none imports gls_jax."""

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


def gls_acceptance(draft_probs, q):
    """Acceptance of GLS for K draft distributions, by adaptive quadrature of its definition.

    Suppose that stream k brings target j at time m (noise `m q_j`). Then stream k drafts j unless a
    competitor i with `q_j / p_j > q_i / p_i` arrives before. Another stream drafts j by its own
    race, given that nothing in it reaches the target before m.
    """

    def drafts_other(p, j, m):
        """P(the stream drafts something else than j, and nothing reaches the target before m)."""
        nothing_before = np.exp(-m)
        if p[j] == 0:
            return nothing_before
        start = q[j] / p[j]

        def integrand(u):
            # j is drafted at time t = S_j / p_j; every category i must wait max(t p_i, m q_i).
            return np.exp(-m * np.maximum(u * p, q).sum())

        kinks = [q[i] / p[i] for i in range(len(p)) if p[i] and q[i] / p[i] > start]
        edges = np.unique([start, *kinks])
        inner = sum(scipy.integrate.quad(integrand, a, b)[0] for a, b in itertools.pairwise(edges))
        outside = q[p == 0].sum()
        inner += np.exp(-m * (edges[-1] + outside)) / m if m else np.inf
        return nothing_before - m * p[j] * inner

    def wins_without(p, j, m):
        """Density factor: the target j arrives here at m, and the stream drafts something else."""
        if p[j] == 0:
            return np.exp(-m)
        return np.exp(-m) - np.exp(-m * np.maximum(q[j] / p[j] * p, q).sum())

    def missed(m):
        total = 0.0
        for j in range(len(q)):
            others = np.array([drafts_other(p, j, m) for p in draft_probs])
            wins = np.array([wins_without(p, j, m) for p in draft_probs])
            for k in range(len(draft_probs)):
                total += q[j] * wins[k] * np.prod(np.delete(others, k))
        return total

    value = sum(
        scipy.integrate.quad(missed, a, b, epsabs=1e-9)[0]
        for a, b in ((1e-12, 0.1), (0.1, 1), (1, 6), (6, 40))
    )
    return 1 - value


def topk_acceptance(p, q, k):
    """Acceptance of coupled Gumbel top-K.

    Poisson-binomial counts by convolution, and quadrature over the target's arrival time.
    """

    def accepted_given(j, theta):
        count = np.array([1.0])
        for i in range(len(p)):
            enters = 1 - np.exp(-theta * max(q[j] * p[i] / p[j] - q[i], 0))
            count = np.convolve(count, [1 - enters, enters])
        return count[:k].sum()

    total = 0.0
    edges = (0, 1e-4, 1e-2, 0.3, 2, 60)  # the integrand can fall within q_j / p_j of 0
    for j in range(len(q)):
        if p[j] > 0 and q[j] > 0:

            def integrand(theta, j=j):
                return np.exp(-theta) * accepted_given(j, theta)

            for a, b in itertools.pairwise(edges):
                total += q[j] * scipy.integrate.quad(integrand, a, b)[0]
    return total


def optimum_distinct(p, q, k):
    """`1 + min over ALL sets H of q(H) - P(K drafts without replacement are in H)`, draw by draw."""
    size = len(p)

    def contained(inside, used, draws):
        left = sum(p[i] for i in range(size) if i not in used)
        if draws == 0 or left <= 0:
            return 1.0
        return sum(
            p[i] / left * contained(inside, used | {i}, draws - 1)
            for i in inside - used
            if p[i] > 0
        )

    sets = itertools.chain.from_iterable(
        itertools.combinations(range(size), n) for n in range(size + 1)
    )
    return 1 + min(sum(q[i] for i in h) - contained(frozenset(h), frozenset(), k) for h in sets)


def optimum_iid(p, q, k):
    """Optimal acceptance for K i.i.d. drafts, a linear program over (list of drafts, target)."""
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
    )
    # The constraints are inequalities: the mass that is left over is coupled without a gain.
    return -solved.fun


def rejection(draft_probs, q, without_replacement=False):
    """Acceptance and emitted distribution of recursive rejection, list by list."""
    accepted, emitted = 0.0, np.zeros(len(q))

    def test(k, chance, left, pool, refused):
        nonlocal accepted
        if k == len(draft_probs) or pool.sum() <= 0:
            emitted[:] += chance * left
            accepted += chance * sum(left[i] for i in refused)
            return
        p = pool / pool.sum() if without_replacement else draft_probs[k]
        rest = np.maximum(left - p, 0)
        after = rest / rest.sum() if rest.sum() > 1e-14 else left
        for x in np.flatnonzero(p):
            keep = min(1, left[x] / p[x])
            emitted[x] += chance * p[x] * keep
            accepted += chance * p[x] * keep
            if keep < 1:
                others = np.where(np.arange(len(q)) == x, 0, pool) if without_replacement else pool
                test(k + 1, chance * p[x] * (1 - keep), after, others, refused | {x})

    test(0, 1.0, np.array(q, float), np.array(draft_probs[0], float), frozenset())
    return accepted, emitted


def kseq(p, q, k):
    """Acceptance and emitted distribution of SpecTr's K-SEQ, list by list.

    Its division factor is found by Brent's method.
    """

    def gain(rho):
        b = np.minimum(p, q / rho).sum()
        return 1 - (1 - b) ** k - rho * b

    rho = scipy.optimize.brentq(gain, 1, k, xtol=1e-14) if gain(1) > 1e-12 and gain(k) < 0 else 1.0
    keep = np.minimum(1, np.divide(q, rho * p, out=np.zeros(len(q)), where=p > 0))
    b = (p * keep).sum()
    factor = (1 - (1 - b) ** k) / b if b > 0 else k
    rest = np.maximum(q - p * keep * factor, 0)
    rest = rest / rest.sum() if rest.sum() > 1e-12 else q
    accepted, emitted = 0.0, np.zeros(len(q))
    for drafts in itertools.product(np.flatnonzero(p), repeat=k):
        chance = np.prod(p[list(drafts)])
        for x in drafts:
            emitted[x] += chance * keep[x]
            accepted += chance * keep[x]
            chance *= 1 - keep[x]
        emitted += chance * rest
        accepted += chance * sum(rest[i] for i in set(drafts))
    return accepted, emitted


def tournament(draft_probs, q, bracket, wins, champion_probs):
    """Acceptance and emitted distribution when a tournament chooses the draft that is tested.

    `bracket` is nested pairs of draft numbers, ``wins[pair][i][j]`` the probability that category i
    of the first side is chosen over category j of the second, `champion_probs` the distribution of
    the champion.
    """
    rest = np.maximum(q - champion_probs, 0)
    rest = rest / rest.sum() if rest.sum() > 1e-12 else q

    def champions(side, drafts):
        if not isinstance(side, tuple):
            return {drafts[side]: 1.0}
        winners: dict[int, float] = {}
        for i, first_mass in champions(side[0], drafts).items():
            for j, second_mass in champions(side[1], drafts).items():
                stay = 1.0 if i == j else wins[side][i][j]
                winners[i] = winners.get(i, 0) + first_mass * second_mass * stay
                winners[j] = winners.get(j, 0) + first_mass * second_mass * (1 - stay)
        return {x: mass for x, mass in winners.items() if mass > 0}

    accepted, emitted = 0.0, np.zeros(len(q))
    for drafts in itertools.product(*(np.flatnonzero(p) for p in draft_probs)):
        chance = np.prod([p[x] for p, x in zip(draft_probs, drafts, strict=True)])
        for champion, mass in champions(bracket, drafts).items():
            keep = min(1, q[champion] / champion_probs[champion])
            emitted[champion] += chance * mass * keep
            emitted += chance * mass * (1 - keep) * rest
            accepted += chance * mass * (keep + (1 - keep) * sum(rest[i] for i in set(drafts)))
    return accepted, emitted


def pairwise_program(first, second, q, free):
    """Value of the truncated program: `max sum_i min(q_i, r_i)`.

    The maximum is over the choices among the `free` best ranked categories.
    """
    rank = first * second - q
    with np.errstate(divide="ignore"):
        digits = 2.0 ** (14 - np.floor(np.log2(np.abs(rank) + (rank == 0))))
    # Rounded to 15 bits, so that ties do not depend on rounding errors.
    order = np.argsort(np.round(rank * digits) / digits, kind="stable")
    a, b, q = first[order], second[order], q[order]
    size, free = len(q), min(free, len(q))
    pair = np.outer(a, b) + np.outer(b, a)
    better_wins = a * b + np.triu(pair, 1).sum(1)
    # A variable for each pair: the fraction of it that the worse category gets.
    moves = list(itertools.combinations(range(free), 2))
    change = np.zeros((size, len(moves)))
    for column, (i, j) in enumerate(moves):
        change[i, column], change[j, column] = -pair[i, j], pair[i, j]
    solved = scipy.optimize.linprog(
        np.concatenate([np.zeros(len(moves)), -np.ones(size)]),
        A_ub=np.hstack([-change, np.eye(size)]),
        b_ub=better_wins,
        bounds=[(0, 1)] * len(moves) + [(None, x) for x in q],
        method="highs",
    )
    return -solved.fun


def gls_trials(draft_probs, q, num_trials, rng):
    """Accepted trials in `num_trials` brute-force runs of Algorithm 1."""
    accepted = 0
    draft_probs = np.asarray(draft_probs)
    with np.errstate(divide="ignore"):
        for size in [2**15] * (num_trials // 2**15) + [num_trials % 2**15]:
            noise = rng.standard_exponential((size, *draft_probs.shape))
            drafts = (noise / draft_probs).argmin(-1)
            target = (noise.min(1) / q).argmin(-1)
            accepted += int((drafts == target[:, None]).any(1).sum())
    return accepted


def list_code(noise, weights, decoders, bins, message=None):
    """Encoder and decoders of one symbol, from arrays.

    Args:
        noise: exponential noise `[K, N]`, or `[1, N]` for all streams.
        weights: the encoder's log-weights `[N]`.
        decoders: the decoders' log-weights `[K, N]`.
        bins: `[N]`.
        message: the bin that the decoders are told; None: the encoder's.

    Returns:
        Winners `[1 + K]`, and the margin by which each has won; -1 and infinity in an empty bin.
    """
    log_noise = np.log(np.asarray(noise, float))
    encoder_scores = (log_noise - weights).min(0)
    decoder_scores = np.broadcast_to(log_noise, decoders.shape) - decoders
    winners, margins = [], []
    for scores in (encoder_scores, *decoder_scores):
        if winners:
            bin_number = bins[winners[0]] if message is None else message
            scores = np.where(bins == bin_number, scores, np.inf)
        first, second = np.partition(np.append(scores, [np.inf, np.inf]), 1)[:2]
        winners.append(int(scores.argmin()) if first < np.inf else -1)
        margins.append(second - first if first < np.inf else np.inf)
    return winners, margins


def chi_square(counts, probs):
    """p-value of counts under a distribution; impossible categories must not occur.

    Categories that are expected less than 5 times are pooled, if need be with the next larger one.
    """
    counts = np.asarray(counts, float)
    probs = np.asarray(probs, float)
    if counts[probs == 0].sum() > 0:
        return 0.0
    expected = probs / probs.sum() * counts.sum()
    order = np.argsort(expected)
    counts, expected = counts[order], expected[order]
    num_pooled = max(np.sum(expected < 5), np.searchsorted(np.cumsum(expected), 5) + 1)
    counts = np.append(counts[:num_pooled].sum(), counts[num_pooled:])
    expected = np.append(expected[:num_pooled].sum(), expected[num_pooled:])
    if len(counts) < 2:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    return scipy.stats.chi2.sf(statistic, len(counts) - 1)


def binomial(count, num_trials, probability):
    """Two-sided p-value of a count; the probability may be 0 or 1 up to float32 rounding."""
    lowest = max(probability - 1e-6, 0)
    highest = min(probability + 1e-6, 1)
    few = scipy.stats.binom.cdf(count, num_trials, lowest)
    many = scipy.stats.binom.sf(count - 1, num_trials, highest)
    return min(1, 2 * min(few, many))
