"""What every engine over a pretrained model needs: the checkpoint's files, where they come from, tokenizer and card."""
