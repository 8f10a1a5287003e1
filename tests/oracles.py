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
            np.concatenate(
                [[start], [q[i] / p[i] for i in range(len(p)) if p[i] and q[i] / p[i] > start]]
            )
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
        scipy.integrate.quad(missed, a, b, epsabs=1e-9)[0]
        for a, b in ((1e-12, 0.1), (0.1, 1), (1, 6), (6, 40))
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
            for a, b in itertools.pairwise(
                (0, 1e-4, 1e-2, 0.3, 2, 60)
            ):  # the integrand can fall within q_j / p_j of 0
                total += (
                    q[j] * scipy.integrate.quad(lambda t, j=j: np.exp(-t) * given(j, t), a, b)[0]
                )
    return total


def optimum_distinct(p, q, k):
    """`1 + min over ALL sets H of q(H) - P(K drafts without replacement lie in H)`, by recursion over the draws."""
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


def rejection(laws, q, without_replacement=False):
    """Acceptance and emitted law of recursive rejection with the draft laws `laws`, list by list."""
    accepted, emitted = 0.0, np.zeros(len(q))

    def test(k, chance, left, pool, refused):
        nonlocal accepted
        if k == len(laws) or pool.sum() <= 0:
            emitted[:] += chance * left
            accepted += chance * sum(left[i] for i in refused)
            return
        p = pool / pool.sum() if without_replacement else laws[k]
        rest = np.maximum(left - p, 0)
        after = rest / rest.sum() if rest.sum() > 1e-14 else left
        for x in np.flatnonzero(p):
            keep = min(1, left[x] / p[x])
            emitted[x] += chance * p[x] * keep
            accepted += chance * p[x] * keep
            if keep < 1:
                others = np.where(np.arange(len(q)) == x, 0, pool) if without_replacement else pool
                test(k + 1, chance * p[x] * (1 - keep), after, others, refused | {x})

    test(0, 1.0, np.array(q, float), np.array(laws[0], float), frozenset())
    return accepted, emitted


def kseq(p, q, k):
    """Acceptance and emitted law of SpecTr's K-SEQ, list by list; its division factor by Brent's method."""

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


def tournament(laws, q, bracket, wins, law):
    """Acceptance and emitted law when a tournament chooses a draft, which is then sampled against speculatively.

    `bracket` is nested pairs of draft numbers, ``wins[pair][i][j]`` the chance that item i of the first side is chosen
    over item j of the second, `law` the law of the champion.
    """
    rest = np.maximum(q - law, 0)
    rest = rest / rest.sum() if rest.sum() > 1e-12 else q

    def champions(side, drafts):
        if not isinstance(side, tuple):
            return {drafts[side]: 1.0}
        found: dict[int, float] = {}
        for i, one in champions(side[0], drafts).items():
            for j, other in champions(side[1], drafts).items():
                stay = 1.0 if i == j else wins[side][i][j]
                found[i] = found.get(i, 0) + one * other * stay
                found[j] = found.get(j, 0) + one * other * (1 - stay)
        return {x: mass for x, mass in found.items() if mass > 0}

    accepted, emitted = 0.0, np.zeros(len(q))
    for drafts in itertools.product(*(np.flatnonzero(p) for p in laws)):
        chance = np.prod([p[x] for p, x in zip(laws, drafts, strict=True)])
        for champion, mass in champions(bracket, drafts).items():
            keep = min(1, q[champion] / law[champion])
            emitted[champion] += chance * mass * keep
            emitted += chance * mass * (1 - keep) * rest
            accepted += chance * mass * (keep + (1 - keep) * sum(rest[i] for i in set(drafts)))
    return accepted, emitted


def pairwise_program(first, second, q, free):
    """Value of the truncated program: `max sum_i min(q_i, r_i)` over the choices among the `free` best ranked items."""
    rank = first * second - q
    with np.errstate(divide="ignore"):
        digits = 2.0 ** (14 - np.floor(np.log2(np.abs(rank) + (rank == 0))))
    order = np.argsort(
        np.round(rank * digits) / digits, kind="stable"
    )  # to 15 bits: ties are not a matter of rounding
    a, b, q = first[order], second[order], q[order]
    size, free = len(q), min(free, len(q))
    pair = np.outer(a, b) + np.outer(b, a)
    law = a * b + np.triu(pair, 1).sum(1)
    moves = list(
        itertools.combinations(range(free), 2)
    )  # fraction of the pair that the worse one gets
    change = np.zeros((size, len(moves)))
    for column, (i, j) in enumerate(moves):
        change[i, column], change[j, column] = -pair[i, j], pair[i, j]
    solved = scipy.optimize.linprog(
        np.concatenate([np.zeros(len(moves)), -np.ones(size)]),
        A_ub=np.hstack([-change, np.eye(size)]),
        b_ub=law,
        bounds=[(0, 1)] * len(moves) + [(None, x) for x in q],
        method="highs",
    )
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


def list_code(clocks, weights, decoders, bins, message=None):
    """Encoder and decoders of one symbol from arrays: `clocks` [K, N] (or [1, N], one for all), log-`weights` [N]
    of the encoder and [K, N] of the `decoders`, `bins` [N]. Winners [1 + K] and by how much each has won; -1 and
    infinitely in an empty bin. Decoders hear `message`, or else the encoder's.
    """
    log_clocks = np.log(np.asarray(clocks, float))
    winners, margins = [], []
    for scores in [
        (log_clocks - weights).min(0),
        *(np.broadcast_to(log_clocks, decoders.shape) - decoders),
    ]:
        if winners:
            scores = np.where(
                bins == (bins[winners[0]] if message is None else message), scores, np.inf
            )
        first, second = np.partition(np.append(scores, [np.inf, np.inf]), 1)[:2]
        winners.append(int(scores.argmin()) if first < np.inf else -1)
        margins.append(second - first if first < np.inf else np.inf)
    return winners, margins


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
    return min(
        1,
        2
        * min(
            scipy.stats.binom.cdf(hits, trials, low), scipy.stats.binom.sf(hits - 1, trials, high)
        ),
    )
