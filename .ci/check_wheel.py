"""Fail unless a wheel holds exactly the package files that git tracks, besides its metadata."""

import subprocess
import sys
import zipfile

ROOTS = {"vipp/": "", "transforms/vipp_transforms/": "transforms/"}


def main(wheel: str) -> None:
    listing = subprocess.run(["git", "ls-files", "-z", *ROOTS], capture_output=True, check=True)
    tracked = {
        name.removeprefix(prefix)
        for name in listing.stdout.decode().split("\0")
        for root, prefix in ROOTS.items()
        if name.startswith(root)
    }
    packed = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if not name.split("/")[0].endswith(".dist-info")
    }
    for name in sorted(tracked - packed):
        print(f"tracked but not in the wheel: {name}")
    for name in sorted(packed - tracked):
        print(f"in the wheel but not tracked: {name}")
    if tracked != packed or not tracked:
        raise SystemExit(f"{wheel}: {len(packed)} files, git tracks {len(tracked)}")
    print(f"{wheel}: {len(packed)} package files, exactly those that git tracks")


if __name__ == "__main__":
    main(sys.argv[1])
