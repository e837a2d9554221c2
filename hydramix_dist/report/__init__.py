"""What a person looks at: the report page, its plots, and the sheets of mixes."""
