def explain(parser, argv, reason):
    return reason
