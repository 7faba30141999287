"""Ask a trained model, and look at its routing: ``python example_usage.py [CHECKPOINT [CONFIG]]``."""

import sys

from dynamo_mtl import DynamoInference
from dynamo_mtl.errors import EXIT_CODE, DynamoError
from evaluation import create_routing_analyzer, routing_dataloader


def show(checkpoint: str = "./checkpoints/final_model", config: str | None = None) -> None:
    """Answer one input of each kind, then draw where the router sends validation inputs."""
    model = DynamoInference(checkpoint, config)

    result = model.predict("I love this movie!", task_hint="sentiment", return_routing_info=True)
    print("I love this movie! ->", result["sentiment"]["label"])
    print("the router would have chosen:", result["routing_info"]["predicted_task"])

    for text, context in (
        ("The woman reads a book in the garden.", None),
        ("Write a function that returns a list of the square of all even numbers.", None),
        ("Who drew the plans?", "The bridge was built in 1901. Clara Moreau drew the plans. It is painted pale blue."),
    ):
        print(text, "->", model.predict(text, context=context, return_routing_info=True))

    analyzer = create_routing_analyzer(model, model.task_names)
    scores = analyzer.analyze_routing_decisions(routing_dataloader(model, limit=50))
    print("routing accuracy:", scores["accuracy"])
    print("picture:", analyzer.visualize_routing_patterns("./visualizations"))


if __name__ == "__main__":
    try:
        show(*sys.argv[1:3])
    except DynamoError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
