#!/bin/sh
# The main job from end to end: census records in, a private model and its report out.
# Everything lies in runs/demo and is made anew each time; the records are public or generated, so
# their ledger may go with them. (The ledger of sensitive records must never be deleted.)
set -eu

dither=${DITHER:-dither}
out=runs/demo
rm -rf "$out"
mkdir -p "$out"
DITHER_HOME=$PWD/$out/home
export DITHER_HOME

if "$dither" data fetch --states wi mn --year 2023 --out "$out/census" --timeout 10 --retries 0; then
  echo "records: American Community Survey 2023, Wisconsin and Minnesota, from the Census site"
  records=$out/census
else
  echo "records: generated, because the Census site cannot be reached from here"
  "$dither" data synth --out "$out/generated.zip" --rows 150000
  records=$out/generated.zip
fi

settings="--task employment --data $records --steps 400 --batch-size 1024 --checkpoint-every 50 --seed 1"
# shellcheck disable=SC2086 # the settings are words
"$dither" train $settings --out "$out/private" --epsilon 1 --delta 1e-6
# shellcheck disable=SC2086
"$dither" train $settings --out "$out/plain" --no-private
"$dither" report "$out/private" --against "$out/plain"
"$dither" ledger "$out/private"
