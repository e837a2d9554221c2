"""Jobs on a Ray cluster: submitted, followed, stopped, and judged by the marker that they leave."""
