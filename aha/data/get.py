"""Fetch the TVSum annotations from the official repository, for whoever removed the copy that ships with the package.

    python -m aha.data.get tvsum          into datasets/tvsum

Fetches `ydata-tvsum50.mat` (1.1 MB) and makes the two TSV files out of it: by their sha256 those that ship. An interrupted
download goes on where it stopped when the command is given again. Other data sets ask you to accept terms:
python -m aha.data.prepare says where they are.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from aha.data.prepare import tvsum_tables, write_tables
from aha.errors import UserError, run_command
from aha.eval.annotations import read_tvsum
from aha.eval.task import DATA

SOURCE = "https://github.com/yalesong/tvsum/raw/master/matlab/ydata-tvsum50.mat"
SHA256 = {  # of the two files, as they ship
    "info": "e3b429c144adb7eeb25819c66a8224ef468f55dedec10411366395f43b1844b7",
    "anno": "13972d16f2f05016dcbb4a62563cc74db98e829facbd8151cd0276cf47b4bd98",
}
LARGEST = 64 << 20  # bytes; the file has 1.1 MB
BY_HAND = (
    "or put the official archive (https://people.csail.mit.edu/yalesong/tvsum/tvsum50_ver_1_1.tgz, 644 MB) into {folder} and run "
    "python -m aha.data.prepare tvsum"
)
TIMEOUT_S = 30


def fetch(url: str, part: Path) -> None:
    """Download `url` into `part`, after what it holds already. Raises UserError; what has come so far stays for the next try."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    by_hand = BY_HAND.format(folder=part.parent)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            goes_on = answer.status == http.client.PARTIAL_CONTENT  # else the server sends the file from its beginning
            with part.open("ab" if goes_on else "wb") as file:
                size = file.tell() + int(answer.headers.get("Content-Length", LARGEST))
                with tqdm(total=size, initial=file.tell(), unit="B", unit_scale=True, disable=None) as bar:
                    while file.tell() < LARGEST and (chunk := answer.read(1 << 16)):
                        bar.update(file.write(chunk))
                have = file.tell()
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # it was whole already, or is of another file
            part.unlink()
            return fetch(url, part)
        raise UserError(f"{url} answers {error.code} {error.reason}; try again later, {by_hand}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} cannot be fetched ({reason}); give the same command when the network is there, {by_hand}.") from error
    if have < size:
        raise UserError(f"the connection to {url} ended after {have:,} of {size:,} bytes; give the same command again to go on.")


def get_tvsum(folder: Path) -> list[Path]:
    """Write ydata-tvsum50-info.tsv and -anno.tsv into the folder; returns their paths. Nothing is written unless both hashes are right."""
    part, mat = folder / ".ydata-tvsum50.part", folder / ".ydata-tvsum50.mat"
    fetch(SOURCE, part)
    part.rename(mat)  # a file of another content is not gone on with
    try:
        tables = tvsum_tables(read_tvsum(mat))
    except UserError as error:
        raise UserError(f"{SOURCE} is not the file it was ({error}); nothing was written.") from error
    finally:
        mat.unlink()
    for kind, text in tables.items():
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest != SHA256[kind]:
            raise UserError(
                f"{SOURCE} is not the file it was ({kind}: sha256 {digest[:12]}, not {SHA256[kind][:12]}); nothing was written."
            )
    return write_tables(tables, folder)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m aha.data.get", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["tvsum"], help="which data set")
    parser.add_argument("--root", default=str(DATA), metavar="DIR", help="folder of the data sets (default %(default)s)")
    args = parser.parse_args(argv)
    for path in get_tvsum(Path(args.root) / args.dataset):
        print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
