# pip install -r requirements-decompose.txt   (scikit-learn 1.9.1, numpy 2.4.6, safetensors 0.8.0)
"""Seconds of PCA and of an iteration of FastICA: `cargo bench --bench decompose` and scikit-learn, by turns, on the same file of rows, machine and threads.

Every round runs each of them once, one after another, so that what else the machine does disturbs all alike; a line of JSON for each, then for each number of threads one
and each clock (the wall's, and time on the processor, which a busy machine disturbs least) one with the medians over the rounds of the times, and least, median and greatest of
each round's ratio of scikit-learn's time to monosem's. PCA is timed from rows in f32 in memory to components
(scikit-learn: `PCA(svd_solver="covariance_eigh")`, in f64 with the conversion of the rows, and in f32). FastICA (scikit-learn:
`FastICA(algorithm="parallel", fun="logcosh", whiten="unit-variance", whiten_solver="eigh")`, f64 and f32) is timed by the iteration, the median of five after
a first, from the end of one's decorrelation to the end of the next one's. (Differences of whole runs that stop after different numbers of iterations measure the same
on an idle machine, and nothing on a shared one: what disturbs the whitening is many times an iteration.) monosem computes PCA in f64 whatever comes in, and FastICA's
products in f32, their sums, the whitening and the decorrelation in f64.

With `--check` no time is taken: both fit the same rows until they converge, and their PCA (variances to 1e-6 of themselves, directions to
|cos| > 0.999999) and their ICA sources (matched one to one, |cos| > 0.999) have to agree. Both start FastICA from
the same matrix: from another one, a pair of sources may end at their sum and difference, which is a fixed point too.

usage: decompose_peers.py [--n 50000] [--d 576] [--threads 1 2] [--rounds 5] [--rows FILE] [--binary FILE]
       [--check]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

ICA = dict(algorithm="parallel", fun="logcosh", whiten="unit-variance", whiten_solver="eigh", random_state=0)
TIMED = 5
CLOCKS = ["seconds", "cpu_seconds"]
PEERS = ["sklearn-f64", "sklearn-f32"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("n", 50_000), ("d", 576), ("rounds", 5)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", help="a file activations-*.safetensors of a store; else mixtures of sparse sources are written to one")
    parser.add_argument("--binary", help="the bench as a program that is built already, instead of `cargo bench`")
    parser.add_argument("--check", action="store_true", help="compare what both find instead of the time they take")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=["pca", "fastica"], help=argparse.SUPPRESS)
    return parser.parse_args()


def rows_of(path):
    from safetensors.numpy import load_file

    return load_file(path)["activations"]


def write_mixtures(args, path):
    """Sparse sources, mixed, with means that are not zero. A random direction holds a little of every source and is nearly Gaussian; only with tails as heavy as these does it
    differ from one by more than the sampling error of its moments, so that FastICA finds the sources from any start."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    sources = rng.laplace(size=(args.n, args.d)) * (rng.random((args.n, args.d)) < 0.05)
    mixing = rng.normal(size=(args.d, args.d)) / args.d**0.5 + np.eye(args.d)
    rows = sources @ mixing * np.geomspace(0.2, 5, args.d) + rng.normal(size=args.d)
    save_file({"activations": np.ascontiguousarray(rows, dtype=np.float32)}, path)


def fit_ica(x, max_iter, tol, start=None):
    from sklearn.decomposition import FastICA
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FastICA(**ICA, max_iter=max_iter, tol=tol, w_init=start).fit(StandardScaler().fit_transform(x))


def run_peer(args):
    import numpy as np
    from sklearn.decomposition import PCA

    x = rows_of(args.rows)
    dtype = np.float64 if args.peer == "sklearn-f64" else np.float32

    def now():
        return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}

    if args.case == "pca":
        start = now()
        PCA(svd_solver="covariance_eigh").fit(x.astype(dtype, copy=False))
        end = now()
        return {clock: end[clock] - start[clock] for clock in CLOCKS}
    from sklearn.decomposition import _fastica

    ends, decorrelate = [], _fastica._sym_decorrelation

    def timed(w):
        w = decorrelate(w)
        ends.append(now())
        return w

    # The start is decorrelated too, so that the first iteration lies between the first two ends.
    _fastica._sym_decorrelation = timed
    fit_ica(x.astype(dtype, copy=False), TIMED + 1, 1e-30)
    spans = list(zip(ends[1:], ends[2:]))
    return {clock: statistics.median(after[clock] - before[clock] for before, after in spans) for clock in CLOCKS}


def environment(threads):
    names = ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"]
    return {**os.environ, **{name: str(threads) for name in names}}


def bench(args, *extra):
    cargo = ["cargo", "bench", "--quiet", "--package", "monosem-workspace", "--bench", "decompose", "--"]
    program = [args.binary, "--bench"] if args.binary else cargo
    return [*program, "--json", *extra]


def ours(args, case, threads):
    command = bench(args, "--rows", args.rows, case)
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(threads)).stdout
    return json.loads([line for line in out.splitlines() if line.startswith("{")][0])


def theirs(args, peer, case, threads):
    own = ["--rows", args.rows, "--peer", peer, "--case", case]
    command = [sys.executable, os.path.abspath(__file__), *own]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(threads)).stdout
    return json.loads(out.splitlines()[-1])


def compare(args, threads):
    shape = dict(zip(("n", "d"), rows_of(args.rows).shape))
    for case in ["pca", "fastica"]:
        runs = {name: [] for name in ["monosem", *PEERS]}
        for number in range(args.rounds):
            for name, times in runs.items():
                took = ours(args, case, threads) if name == "monosem" else theirs(args, name, case, threads)
                times.append({clock: took[clock] for clock in CLOCKS})
                line = {"bench": "decompose_peers", "case": case, "peer": name, "round": number, "threads": threads}
                print(json.dumps({**line, **times[-1], **shape}), flush=True)
        for clock in CLOCKS:
            seconds = {name: [took[clock] for took in times] for name, times in runs.items()}
            if None in seconds["monosem"]:
                continue
            summary = {"bench": "decompose_peers", "case": case, **shape, "threads": threads, "rounds": args.rounds, "clock": clock}
            summary["median"] = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
            for peer in PEERS:
                ratios = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["monosem"])]
                summary[f"times_{peer}"] = [round(of(ratios), 2) for of in (min, statistics.median, max)]
            print(json.dumps(summary), flush=True)


def check(args, folder):
    import numpy as np
    from safetensors.numpy import load_file
    from scipy.optimize import linear_sum_assignment
    from sklearn.decomposition import PCA

    file = os.path.join(folder, "results.safetensors")
    subprocess.run(bench(args, "--rows", args.rows, "--results", file), check=True, env=environment(max(args.threads)))
    got, x = load_file(file), rows_of(args.rows).astype(np.float64)

    pca = PCA(svd_solver="covariance_eigh").fit(x)
    want = pca.explained_variance_
    variances_off = np.abs(got["pca_explained_variance"] / want - 1).max()
    cosines = np.abs((got["pca_components"] * pca.components_).sum(axis=1))

    ica = fit_ica(x, 500, 1e-7, got["ica_start"])
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (got["ica_unmixing"], ica.components_)]
    similarity = np.abs(unit[0] @ unit[1].T)
    matched = similarity[linear_sum_assignment(-similarity)]
    agrees = variances_off < 1e-6 and cosines.min() > 0.999999 and matched.min() > 0.999
    line = {"bench": "decompose_peers", "check": bool(agrees), "n": x.shape[0], "d": x.shape[1], "variances_off": variances_off}
    line.update(least_direction_cosine=cosines.min(), sources=len(matched), least_source_cosine=matched.min())
    line.update(median_source_cosine=float(np.median(matched)), sources_off=int((matched <= 0.999).sum()), sklearn_iterations=ica.n_iter_)
    print(json.dumps(line))
    if not agrees:
        sys.exit("monosem and scikit-learn do not agree: see the line above")


def main():
    args = arguments()
    if args.peer:
        print(json.dumps(run_peer(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.rows:
            args.rows = os.path.abspath(args.rows)
        else:
            args.rows = os.path.join(folder, "rows.safetensors")
            write_mixtures(args, args.rows)
        if args.check:
            check(args, folder)
            return
        for threads in args.threads:
            compare(args, threads)


if __name__ == "__main__":
    main()
