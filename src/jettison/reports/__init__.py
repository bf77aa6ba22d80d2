"""What a run did, as a page to hand around: one self-contained HTML file per run, and one that compares runs."""
