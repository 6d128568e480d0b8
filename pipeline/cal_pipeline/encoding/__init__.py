"""Encodes samples: `Sample` and images in, `EncodedSample` and `Batch` out.

Measuring and training share this package, which makes their token ids and labels agree. A conversation becomes text and
supervised characters (templates, chat), those become tokens and labels (processor_facts, spans, labels), a perturbed
image is made beside them (perturbation), and rows become batches (prefetch, collate). Read encoder first.
"""
