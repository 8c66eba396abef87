// The login form: its words in the reader's language, and why it is shown again.
import { t } from "/static/i18n.js";

document.getElementById("label").textContent = t("token");
document.getElementById("submit").textContent = t("logIn");
if (new URLSearchParams(location.search).has("failed")) {
  document.getElementById("problem").textContent = t("wrongToken");
}
