"""Answer whole tables: files of any size, data frames, and streams of rows."""
