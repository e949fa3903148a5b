"""Least squares: the member W of a family of kernels that is nearest to a trained kernel T, as its inputs see it.

    E(W) = tr((W - T) Γ (W - T)ᵀ)          W, T: `O D`; Γ: `D D`, the mean of x xᵀ over the unfolded patches x

With Γ = I the inputs are white, and E is the squared distance of the kernels. A family's member is W = w · B, where the
rows of the matrix B `K D` are its features: taps, or averages of taps. Then E(w) = e - 2 tr(w Aᵀ) + tr(w N wᵀ), with

    A = T Γ Bᵀ  `O K`,  N = B Γ Bᵀ  `K K`,  e = tr(T Γ Tᵀ)

and the solvers below need A, N and e alone. All numbers are float64, and nothing is drawn at random. Singular matrices
get a ridge of `RIDGE` times their mean diagonal, always towards the numbers at hand: so no step makes E larger.
"""

import torch
from torch import Tensor

RIDGE = 1e-10
SWEEPS = 30  # of the alternation, at most
TOLERANCE = 1e-4  # the share of the error that a sweep must win for another one to follow
STEPS = 20  # of conjugate gradients in a sweep, at most
WORK = 1.5e11  # multiplications of conjugate gradients in an alternation, at most: some 25 s of one core


def root(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor of symmetric matrices `... K K`, with the ridge that they need."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE * diagonal.mean(-1, keepdim=True).clamp_min(1e-30)
    while True:
        lower, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(ridge.expand_as(diagonal)))
        if not bool(info.any()):
            return lower
        ridge = ridge * 100


def nearest_rows(cross: Tensor, normal: Tensor, start: Tensor, live: Tensor) -> Tensor:
    """The rows w with the fewest errors E among those that are zero outside of `live`. The optimum, by Cholesky.

    Args:
        cross, normal: A `O K` and N `K K`.
        start: `O K`, zero outside of `live`; the ridge of a singular N leads towards it, and E is never above its E.
        live: bool `O K`. Rows with one support are solved for together.
    Returns: `O K`.
    """
    found, pull = start.clone(), cross - start @ normal
    supports, which = torch.unique(live, dim=0, return_inverse=True)
    for index, support in enumerate(supports):
        rows, taps = (which == index).nonzero()[:, 0], support.nonzero()[:, 0]
        if len(taps):
            lower = root(normal[taps][:, taps])
            step = torch.cholesky_solve(pull[rows][:, taps].T, lower).T
            found[rows[:, None], taps] += step
    return found


def low_rank(target: Tensor, rank: int, normal: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best factors of that rank of each of G blocks on its own, in the metric N (Eckart and Young).

    Args:
        target: `G O K`.
        normal: `G K K`; None: white.
    Returns: `G O rank` and `G rank K`; where a block has a lower rank, the surplus of both is zero.
    """
    lower = None if normal is None else root(normal)
    left, sizes, right = torch.linalg.svd(target if lower is None else target @ lower, full_matrices=False)
    found = min(rank, sizes.shape[1])
    scale = sizes[:, :found].sqrt()
    right = right[:, :found] * scale[..., None]
    if lower is not None:
        right = torch.linalg.solve_triangular(lower, right, upper=False, left=False)
    v, u = target.new_zeros(*target.shape[:2], rank), target.new_zeros(len(target), rank, target.shape[2])
    v[..., :found], u[:, :found] = left[..., :found] * scale[:, None], right
    return v, u


def balanced(v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The same products `G O m` · `G m K` by factors of equal norms; a component without weight is zero in both."""
    (q, a), (p, b) = torch.linalg.qr(v), torch.linalg.qr(u.mT)
    left, sizes, right = torch.linalg.svd(a @ b.mT, full_matrices=False)
    sizes = sizes.where(sizes > 1e-12 * sizes.amax(), 0)
    scale, found = sizes.sqrt(), sizes.shape[1]
    v, u = torch.zeros_like(v), torch.zeros_like(u)
    v[..., :found], u[:, :found] = q @ left * scale[:, None], scale[..., None] * (right @ p.mT)
    return v, u


def alternate(
    cross: Tensor,
    normal: Tensor,
    energy: Tensor,
    v: Tensor,
    u: Tensor,
    sees: Tensor | None = None,
    *,
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, Tensor, float]:
    """Stencils u in G blocks, then a 1×1 v: alternating least squares for w = (v_1 u_1, ..., v_G u_G).

    Given u, v solves its normal equations by Cholesky. Given v, u takes steps of conjugate gradients from where it
    stands, with the blocks' own equations as preconditioner. Each lowers E. A step multiplies u by N once.

    Args:
        cross, normal, energy: A `O G·K`, N `G·K G·K`, e.
        v, u: where to start, `O G·m` and `G m K`.
        sees: bool `O G·m`, the entries of v that may differ from zero; None: all.
        sweeps, tolerance: stop after so many, or once a sweep lowers E by less than this share of it; or after `WORK`.
    Returns: v, u, and E.
    """
    blocks = _Blocks(cross, normal, *u.shape)
    error, left = float("inf"), int(WORK / (u.numel() * (len(normal) + 2 * u.shape[2]))) + 1
    steps = min(STEPS, left // 10 + 4)
    for sweep in range(sweeps + 1):
        v, now = blocks.project(v, u, energy, sees)
        settled = error - now <= tolerance * max(now, 0.0) or now <= 1e-13 * float(energy)
        error = now
        if settled or sweep == sweeps or left <= 0:
            break
        u = blocks.filter(v, u, steps)
        left -= steps
    return v, u, error


class _Blocks:
    """The normal equations of v given u, and of u given v, for features in G blocks of K."""

    def __init__(self, cross: Tensor, normal: Tensor, groups: int, rank: int, taps: int) -> None:
        self.groups, self.rank, self.taps = groups, rank, taps
        self.cross = cross.unflatten(1, (groups, taps)).transpose(0, 1)  # G O K
        self.slabs = normal.unflatten(0, (groups, taps))  # G K (G K)
        own = self.slabs.unflatten(2, (groups, taps)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        self.own = root(own)  # G K K

    def _seen(self, u: Tensor) -> Tensor:
        """u · N: `G m K -> G (G m) K`, for each block what all filters see of it."""
        return (u @ self.slabs).flatten(0, 1).unflatten(1, (self.groups, self.taps)).transpose(0, 1)

    def project(self, v: Tensor, u: Tensor, energy: Tensor, sees: Tensor | None) -> tuple[Tensor, float]:
        """The best v for these filters, and E."""
        normal = (self._seen(u) @ u.mT).transpose(0, 1).flatten(1)  # (G m) (G m)
        cross = (self.cross @ u.mT).transpose(0, 1).flatten(1)  # O (G m)
        normal = (normal + normal.T) / 2
        live = torch.ones_like(v, dtype=torch.bool) if sees is None else sees
        v = nearest_rows(cross, normal, v, live)
        return v, float(energy - 2 * (v * cross).sum() + (v @ normal * v).sum())

    def filter(self, v: Tensor, u: Tensor, steps: int) -> Tensor:
        """Better filters for this v, by so many steps of conjugate gradients."""
        weights = (v.T @ v).unflatten(0, (self.groups, self.rank))  # G m (G m)
        own = weights.unflatten(2, (self.groups, self.rank)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        lower = root(own)  # G m m

        def conditioned(r: Tensor) -> Tensor:
            return torch.cholesky_solve(torch.cholesky_solve(r, lower).mT, self.own).mT

        rest = v.T.unflatten(0, (self.groups, self.rank)) @ self.cross - weights @ self._seen(u)  # G m K
        z = conditioned(rest)
        direction, size = z, (rest * z).sum()
        first = size
        for _ in range(steps):
            if not bool(size > 1e-6 * first):
                break
            image = weights @ self._seen(direction)
            bend = (direction * image).sum()
            if not bool(bend > 0):
                break
            step = size / bend
            u, rest = u + step * direction, rest - step * image
            z = conditioned(rest)
            before, size = size, (rest * z).sum()
            direction = z + size / before * direction
        return u


def rank_one(target: Tensor, normal: Tensor | None = None, *, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor]:
    """A column times a row for each channel: E's optimum where white, else by alternation from there.

    Args:
        target: `C R S`.
        normal: `C R·S R·S`; None: white.
    Returns: `C R` and `C S`, of equal norms.
    """
    v, u = low_rank(target, 1)
    column, row = v[..., 0], u[:, 0]
    if normal is not None:
        (r, s), pull = target.shape[1:], (normal @ target.flatten(1)[..., None]).view_as(target)
        gram = normal.unflatten(1, (r, s)).unflatten(3, (r, s))  # C R S R S
        for _ in range(sweeps):
            row = nearer(row, torch.einsum("cr,crsxy,cx->csy", column, gram, column), _weigh(pull, column))
            column = nearer(column, torch.einsum("cs,crsxy,cy->crx", row, gram, row), _weigh(pull.mT, row))
    v, u = balanced(column[..., None], row[:, None])
    return v[..., 0], u[:, 0]


def _weigh(pull: Tensor, by: Tensor) -> Tensor:
    return torch.einsum("crs,cr->cs", pull, by)


def nearer(old: Tensor, normal: Tensor, cross: Tensor) -> Tensor:
    """`C K` that solves N w = A for each channel, by a step from `old`."""
    rest = cross[..., None] - normal @ old[..., None]
    return old + torch.cholesky_solve(rest, root(normal))[..., 0]
