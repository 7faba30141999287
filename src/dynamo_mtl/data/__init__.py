"""Read examples, and choose the order in which they are drawn. Independent of task types."""
