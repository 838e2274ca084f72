"""How a model is spread over processes: the plan, and the one order in which it is applied."""
