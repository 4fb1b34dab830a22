"""The features of a task, one file each; ``built_in`` lists them."""
