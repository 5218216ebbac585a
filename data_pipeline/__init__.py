"""From one FineWeb parquet file to batches of packed rows."""
