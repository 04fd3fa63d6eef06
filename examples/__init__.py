"""Programs that show our encoders at other tasks; see docs/export.md."""
