"""Plain transcriptions of published steps, written from the spec sheets, to measure against."""
