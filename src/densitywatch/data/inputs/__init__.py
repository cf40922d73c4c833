"""Where images come from: folders, archives, Parquet files and remote addresses, read as a stream of input files.

Start with source.py."""
