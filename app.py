"""The planner in a browser: `kvplan app`, or `streamlit run app.py`. The page itself is `kvplan.pages.page`.

Processes that do a visitor's work read this file too, under another name: nothing but `main` runs.
"""

if __name__ == "__main__":
    from kvplan.pages.page import main

    main()
