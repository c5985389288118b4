package main

import (
	"net/http"
	"path"

	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
)

// ownSecretManager is a manager whose configuration asks for one Secret only. The library
// that rotates the webhook's certificate makes a cache from it that lists and watches all
// Secrets of the namespace, and cannot be told otherwise. With a name in the field selector
// the API server authorizes a list and a watch by that name: so the manager's role can
// name the one Secret, and the passwords and keys beside it stay unread.
type ownSecretManager struct {
	ctrl.Manager
	secret string
}

// GetConfig implements [ctrl.Manager].
func (m ownSecretManager) GetConfig() *rest.Config {
	config := rest.CopyConfig(m.Manager.GetConfig())
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return ownSecret{next, m.secret} })
	return config
}

// ownSecret narrows lists and watches of Secrets to one name.
type ownSecret struct {
	next http.RoundTripper
	name string
}

// RoundTrip implements [http.RoundTripper].
func (o ownSecret) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet && path.Base(req.URL.Path) == "secrets" {
		req = req.Clone(req.Context())
		query := req.URL.Query()
		query.Set("fieldSelector", "metadata.name="+o.name)
		req.URL.RawQuery = query.Encode()
	}
	return o.next.RoundTrip(req)
}
