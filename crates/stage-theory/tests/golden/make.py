"""Independent values of the binary Gaussian example, by scipy: python make.py > theory.csv

One draw: the bivariate normal distribution function. Votes: the density of the middle order statistic of n normal
draws, integrated against normal distribution functions (not the binomial tail that the program integrates).
votes = 0 means infinitely many.
"""

import math

from scipy.integrate import quad
from scipy.special import gammaln
from scipy.stats import multivariate_normal, norm

PHI = norm.cdf


def one_draw(s, e, k):
    spread = math.sqrt(1 + s * s)
    accuracy = (PHI(k / spread) + PHI((2 - k) / spread)) / 2
    joint = (PHI((k - e) / spread) + PHI((2 - k - e) / spread)) / 2
    same = 0.0
    for y in (-1, 1):
        mean = [y, y + 1 - k]
        cov = [[1, 1], [1, 1 + s * s]]
        options = dict(abseps=1e-13, releps=1e-13, maxpts=10_000_000)
        below = multivariate_normal.cdf([0, 0], mean, cov, **options)
        above = multivariate_normal.cdf([0, 0], [-m for m in mean], cov, **options)
        same += (below + above) / 2
    return accuracy, joint, same


def order_statistic(n):
    m = (n + 1) // 2
    const = gammaln(n + 1) - gammaln(m) - gammaln(n - m + 1)
    return lambda z: math.exp(const + (m - 1) * norm.logcdf(z) + (n - m) * norm.logsf(z) + norm.logpdf(z))


def given_median(t, e, k):
    """Probabilities given that the noise that decides is t: answer sgn(x + t - k)."""
    b = k - t
    accuracy = (PHI(1 - b) + PHI(b + 1)) / 2
    joint = (PHI(1 - b - e) + PHI(b + 1 - e)) / 2
    apart = sum(abs(PHI(b - y) - PHI(-y)) for y in (-1, 1)) / 2
    return accuracy, joint, 1 - apart


def votes(s, e, k, n):
    if n == 0:
        return given_median(1.0, e, k)
    f = order_statistic(n)
    reach = 10 * math.sqrt(math.pi / 2 / n)
    kink = (k - 1) / s
    ends = sorted({-reach, reach} | ({kink} if abs(kink) < reach else set()) | {0.0})
    out = []
    for i in range(3):
        g = lambda z: f(z) * given_median(1 + s * z, e, k)[i]
        out.append(sum(quad(g, a, b, epsabs=1e-14, epsrel=1e-13, limit=500)[0] for a, b in zip(ends, ends[1:])))
    return tuple(out)


print("sigma,epsilon,k,votes,accuracy,joint,robustness,invariance")
for s, e in [(1.0, 1.0), (0.1, 0.05), (0.5, 0.25), (2.5, 2.0)]:
    for k in (0.0, 0.6, 1.0, 1.3):
        for n in (1, 3, 25, 501, 0):
            a, j, r = one_draw(s, e, k) if n == 1 else votes(s, e, k, n)
            print(f"{s},{e},{k},{n},{a:.15f},{j:.15f},{j / a:.15f},{r:.15f}")
