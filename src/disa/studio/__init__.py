"""`disa studio`: drawing, comparing and editing in a browser.

`page` and what it imports need gradio alone, so that the page is there before PyTorch is;
`handlers` and what it imports draw.
"""
