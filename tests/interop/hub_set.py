"""Writes an image set as the Hugging Face hub has it: `hub_set.py SHARDS FOLDER`."""

import glob
import os
import sys

import datasets

datasets.disable_progress_bars()

shards, folder = sys.argv[1:]
os.makedirs(folder)
images = datasets.load_dataset("parquet", data_files=sorted(glob.glob(f"{shards}/train-*.parquet")), split="train")
images.select_columns(["image", "label"]).to_parquet(f"{folder}/train-00000-of-00001.parquet", batch_size=50)
