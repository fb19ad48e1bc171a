"""Plain transcriptions of published steps, written from our spec sheets, to measure ours against."""
