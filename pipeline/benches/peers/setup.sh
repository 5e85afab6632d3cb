#!/bin/sh
# Makes the Python environment of the peers: setup.sh [FOLDER, default .venv in the current folder]. Takes about 10 GB.
# FFCV is not among them: it has no wheels, and needs the headers of OpenCV and libjpeg-turbo to build.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-.venv}
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
# One by one, so that a library that does not start here is named; run.py skips it.
for library in torchvision torchcodec nvidia.dali tensorflow webdataset streaming litdata decord; do
    "$venv/bin/python" -c "import $library" 2>/dev/null || echo "$library does not start here" >&2
done
