"""Golden values of game::interval for paired proportions, by scipy: python3 paired.py

Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10: Wilson intervals of both proportions, squared and added
with the correlation phi, whose numerator is drawn towards 0 by n/2. With a share r: the MOVER interval of p1 - r p2 (Donner
and Zou 2012, Statistical Methods in Medical Research 21, 347-359), which is method 10 at r = 1. McNemar's test: exact,
two-sided, conditional on the discordant pairs.
"""

from math import sqrt

from scipy.stats import binomtest

TABLES = [(59, 6, 16, 80), (1, 1, 7, 12), (20, 12, 2, 16), (0, 0, 0, 30), (30, 0, 0, 0), (0, 29, 0, 1), (95, 0, 1, 4), (3, 40, 45, 12), (0, 3, 5, 0)]


def interval(both, first, second, neither, share):
    n = both + first + second + neither
    ones = binomtest(both + first, n), binomtest(both + second, n)
    p1, p2 = (test.statistic for test in ones)
    (l1, u1), (l2, u2) = (test.proportion_ci(method="wilson") for test in ones)
    spread = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / sqrt(spread) if spread else 0.0
    low = sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * share * (u2 - p2) + (share * (u2 - p2)) ** 2)
    high = sqrt((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * share * (p2 - l2) + (share * (p2 - l2)) ** 2)
    value = p1 - share * p2
    return value, value - low, value + high


for table in TABLES:
    discordant = table[1] + table[2]
    p = binomtest(table[1], discordant).pvalue if discordant else 1.0
    for share in (1.0, 0.95):
        value, low, high = interval(*table, share)
        print(f"({table}, {share}, {value:.15f}, {low:.15f}, {high:.15f}, {float(p)!r}),")
