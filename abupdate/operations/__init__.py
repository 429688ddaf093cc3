"""The verbs: observe, decide, do one durable step, observe again."""
