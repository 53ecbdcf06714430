"""The app's entry: `streamlit run app/main.py`. One page a question; the page and all its choices are in the URL.

The pages' modules lie in `screens/`: beside the entry a folder `pages/` is Streamlit's own kind of pages, and a link to
one of them, opened first on a fresh server, would show nothing.
"""

import streamlit as st

from leankv.app.navigation import pages
from leankv.app.views import STYLE

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="#0072B2"/>
<g fill="#fff"><rect x="6" y="6" width="5" height="20" rx="1"/><rect x="13.5" y="12" width="5" height="14" rx="1"/>
<rect x="21" y="19" width="5" height="7" rx="1"/></g></svg>"""

st.set_page_config(page_title="LeanKV Explorer", page_icon=ICON, layout="wide")

st.html(STYLE)
st.navigation(pages()).run()
