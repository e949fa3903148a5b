"""`python -m docs.generate`: write the generated pages; prints the files that changed."""

from docs.generate import write

if __name__ == "__main__":
    for path in write():
        print(path)
