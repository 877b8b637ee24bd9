#!/usr/bin/env bash
# Makes the peers' own environments, each from the exact versions in NAME.txt: bench/peers/install.sh [trl litgpt llama-factory trl-liger]
# They go to $LUTHIER_BENCH/envs, by default bench/.work/envs; about 1.2 GB each with a CPU build of torch. trl-liger is for a GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
envs=${LUTHIER_BENCH:-$here/../.work}/envs
if [ $# -eq 0 ]; then set -- trl litgpt llama-factory; fi
for peer in "$@"; do
  rm -rf "$envs/$peer"
  "${PYTHON:-python3}" -m venv "$envs/$peer"
  "$envs/$peer/bin/pip" install --quiet --disable-pip-version-check -r "$here/$peer.txt"
  # LLaMA-Factory asks for them, and their CUDA builds do not load beside a CPU build of torch; text needs neither.
  "$envs/$peer/bin/pip" uninstall --quiet --yes torchvision torchaudio
  echo "$peer: $envs/$peer"
done
