package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs certificates of clients.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "an authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key}
}

func (a *authority) write(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) client(t *testing.T, name string, usage x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestWebhookClients(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.crt")
	ours.write(t, file)
	clients := &webhookClients{caFile: file, names: []string{"kube-apiserver", "other"}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "admitted") }))
	server.TLS = &tls.Config{}
	clients.apply(server.TLS)
	server.StartTLS()
	defer server.Close()

	admitted := func(certificate *tls.Certificate) bool {
		t.Helper()
		transport := server.Client().Transport.(*http.Transport).Clone()
		defer transport.CloseIdleConnections()
		if certificate != nil {
			// Whatever authorities the server says that it knows.
			transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return false
		}
		text, err := io.ReadAll(response.Body)
		return err == nil && response.Body.Close() == nil && string(text) == "admitted"
	}
	theirOwn := theirs.client(t, "kube-apiserver", x509.ExtKeyUsageClientAuth)
	for _, tc := range []struct {
		name        string
		certificate *tls.Certificate
		want        bool
	}{
		{"no certificate", nil, false},
		{"the API server's", ours.client(t, "kube-apiserver", x509.ExtKeyUsageClientAuth), true},
		{"another name", ours.client(t, "system:node:a", x509.ExtKeyUsageClientAuth), false},
		{"a server's certificate", ours.client(t, "kube-apiserver", x509.ExtKeyUsageServerAuth), false},
		{"of another authority", theirOwn, false},
	} {
		if got := admitted(tc.certificate); got != tc.want {
			t.Errorf("%s: admitted %v, want %v", tc.name, got, tc.want)
		}
	}
	clients.names = nil
	if !admitted(ours.client(t, "any name", x509.ExtKeyUsageClientAuth)) {
		t.Error("without names not all who have a certificate are admitted")
	}
	// The authority is replaced. A file that holds nothing changes nothing.
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(2 * caEvery)
	if pool, err := clients.authorities(later); err != nil || !pool.Equal(clients.signed) {
		t.Errorf("with an empty file: %v", err)
	}
	theirs.write(t, file)
	if _, err := clients.authorities(later.Add(2 * caEvery)); err != nil {
		t.Fatal(err)
	}
	if !admitted(theirOwn) || admitted(ours.client(t, "kube-apiserver", x509.ExtKeyUsageClientAuth)) {
		t.Error("after the authority was replaced the old one counts, or the new one does not")
	}
}

func TestWebhookClientsWithoutAFile(t *testing.T) {
	if _, err := (&webhookClients{caFile: filepath.Join(t.TempDir(), "none")}).authorities(time.Now()); err == nil {
		t.Error("a file that is not there is no error")
	}
}
