"""Data sets of synthetic distortions: LIVE, CSIQ, TID2013, KADID-10k."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataSetError
from .._tables import files_below, locate, number, read_csv, read_lines, read_mat, read_xlsx, same_length
from ._base import DataSet, Label

# Folders in the order of LIVE's arrays, with their numbers of images.
LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


def _live(root: Path) -> list[Label]:
    dmos, std, copies = read_mat(root / "dmos_realigned.mat", "dmos_new", "dmos_std", "orgs")
    (references,) = read_mat(root / "refnames_all.mat", "refnames_all")
    names = [f"{folder}/img{i}.bmp" for folder, n in LIVE_FOLDERS.items() for i in range(1, n + 1)]
    same_length(images=names, dmos_new=dmos, dmos_std=std, orgs=copies, refnames_all=references)
    # Undistorted copies of the originals have no rating.
    kept = [i for i, copy in enumerate(copies) if not copy]
    paths = locate([names[i] for i in kept], files_below(root), "the folders of distortions")
    return [
        Label(
            path,
            number(dmos[i], f"dmos_new of {names[i]}"),
            number(std[i], f"dmos_std of {names[i]}"),
            Path(str(references[i])).stem,
            names[i].split("/")[0],
        )
        for i, path in zip(kept, paths, strict=True)
    ]


LIVE = DataSet(
    name="live",
    title="LIVE",
    images=779,
    scale=(0, 100),
    direction="lower",
    references=29,
    licence="any purpose, with its copyright notice and acknowledgement",
    home="https://live.ece.utexas.edu/research/quality/subjective.htm",
    tree="""\
dmos_realigned.mat
refnames_all.mat
jp2k/img1.bmp … img227.bmp
jpeg/img1.bmp … img233.bmp
wn/img1.bmp … img174.bmp
gblur/img1.bmp … img174.bmp
fastfading/img1.bmp … img174.bmp""",
    labels=_live,
)

# Name of a distortion in the sheet: its folder, and its token in file names.
CSIQ_KINDS = {
    "noise": ("awgn", "AWGN"),
    "blur": ("blur", "BLUR"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "fnoise"),
    "jpeg": ("jpeg", "JPEG"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}


def _csiq(root: Path) -> list[Label]:
    columns = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
    rows = read_xlsx(root / "csiq.DMOS.xlsx", columns, sheet="all_by_image")
    originals = [str(row["image"]).removesuffix(".0") for row in rows]  # one name is a number
    names = []
    for original, row in zip(originals, rows, strict=True):
        kind = str(row["dst_type"]).strip().lower()
        if kind not in CSIQ_KINDS:
            raise DataSetError(f"csiq.DMOS.xlsx: dst_type must be {', '.join(CSIQ_KINDS)}, got {kind!r}")
        folder, token = CSIQ_KINDS[kind]
        level = number(row["dst_lev"], f"csiq.DMOS.xlsx: dst_lev of {original}")
        names.append(f"{folder}/{original}.{token}.{level:g}.png")
    paths = locate(names, files_below(root, "dst_imgs"), "dst_imgs")
    return [
        Label(
            path,
            number(row["dmos"], f"csiq.DMOS.xlsx: dmos of {name}"),
            number(row["dmos_std"], f"csiq.DMOS.xlsx: dmos_std of {name}"),
            original,
            name.split("/")[0],
        )
        for original, row, name, path in zip(originals, rows, names, paths, strict=True)
    ]


CSIQ = DataSet(
    name="csiq",
    title="CSIQ",
    images=866,
    scale=(0, 1),
    direction="lower",
    references=30,
    licence="see its page",
    home="https://s2.smu.edu/~eclarson/csiq.html",
    tree="""\
csiq.DMOS.xlsx                      (sheet all_by_image)
dst_imgs/awgn/1600.AWGN.1.png …
dst_imgs/blur/1600.BLUR.1.png …
dst_imgs/contrast/1600.contrast.1.png …
dst_imgs/fnoise/1600.fnoise.1.png …
dst_imgs/jpeg/1600.JPEG.1.png …
dst_imgs/jpeg2000/1600.jpeg2000.1.png …""",
    labels=_csiq,
)

# In the order of their numbers, from the paper's table.
TID2013_KINDS = (
    "additive Gaussian noise", "noise in colour components", "spatially correlated noise", "masked noise",
    "high-frequency noise", "impulse noise", "quantization noise", "Gaussian blur", "denoising",
    "JPEG", "JPEG 2000", "JPEG transmission errors", "JPEG 2000 transmission errors",
    "non-eccentricity pattern noise", "block-wise distortions", "mean shift", "contrast change",
    "colour saturation", "multiplicative Gaussian noise", "comfort noise", "compression of noisy images",
    "colour quantization with dither", "chromatic aberrations", "sparse sampling",
)  # fmt: skip


def _tid2013(root: Path) -> list[Label]:
    lines = [line.split() for line in read_lines(root / "mos_with_names.txt")]
    stds = read_lines(root / "mos_std.txt")
    same_length(mos_with_names=lines, mos_std=stds)
    if wrong := [line for line in lines if len(line) != 2]:
        raise DataSetError(
            f"mos_with_names.txt: lines must be a score and a name, got {' '.join(wrong[0])!r}"
        )
    paths = locate([n for _, n in lines], files_below(root, "distorted_images"), "distorted_images")
    labels = []
    for (score, name), std, path in zip(lines, stds, paths, strict=True):
        reference, kind = _coded(name, len(TID2013_KINDS))
        labels.append(
            Label(
                path,
                number(score, f"mos_with_names.txt: score of {name}"),
                number(std, f"mos_std.txt: line of {name}"),
                reference,
                TID2013_KINDS[kind],
            )
        )
    return labels


TID2013 = DataSet(
    name="tid2013",
    title="TID2013",
    images=3000,
    scale=(0, 9),
    references=25,
    licence="see its readme; that of TID2008 allows education and research",
    home="https://www.ponomarenko.info/tid2013.htm",
    tree="""\
mos_with_names.txt
mos_std.txt
distorted_images/i01_01_1.bmp … i25_24_5.bmp""",
    labels=_tid2013,
)

# In the order of their numbers; named as in `qmamba.data.DISTORTIONS`, whose levels differ.
KADID10K_KINDS = (
    "gaussian_blur", "lens_blur", "motion_blur", "colour_diffusion", "colour_shift", "colour_quantization",
    "colour_saturation_hsv", "colour_saturation_lab", "jpeg2000", "jpeg", "white_noise", "colour_noise",
    "impulse_noise", "multiplicative_noise", "denoise", "brighten", "darken", "mean_shift", "jitter",
    "non_eccentricity_patch", "pixelate", "quantization", "colour_block", "high_sharpen", "contrast_change",
)  # fmt: skip


def _kadid10k(root: Path) -> list[Label]:
    rows = read_csv(root / "dmos.csv", ("dist_img", "ref_img", "dmos", "var"))
    paths = locate([row["dist_img"] for row in rows], files_below(root, "images"), "images")
    # The column dmos is higher for better images; var holds standard deviations.
    return [
        Label(
            path,
            number(row["dmos"], f"dmos.csv: dmos of {row['dist_img']}"),
            number(row["var"], f"dmos.csv: var of {row['dist_img']}"),
            Path(row["ref_img"]).stem,
            KADID10K_KINDS[_coded(row["dist_img"], len(KADID10K_KINDS))[1]],
        )
        for row, path in zip(rows, paths, strict=True)
    ]


KADID10K = DataSet(
    name="kadid10k",
    title="KADID-10k",
    images=10125,
    scale=(1, 5),
    references=81,
    licence="see its page; its originals are from Pixabay",
    home="https://database.mmsp-kn.de/kadid-10k-database.html",
    tree="""\
dmos.csv                            (dist_img, ref_img, dmos, var)
images/I01_01_01.png … I81_25_05.png""",
    labels=_kadid10k,
)


def _coded(name: str, kinds: int) -> tuple[str, int]:
    """Return the reference and the index of the distortion in a name like ``I07_13_4.bmp``."""
    parts = Path(name).stem.split("_")
    if len(parts) != 3 or not parts[1].isdecimal() or not 1 <= int(parts[1]) <= kinds:
        raise DataSetError(f"names must be like I01_01_1, with distortions 1 to {kinds}, got {name!r}")
    return parts[0].upper(), int(parts[1]) - 1
