package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// webhookClients decides who may call the webhooks: whoever can reach their port could
// otherwise have slots reserved and devices counted. It goes by the certificate that the
// API server shows.
type webhookClients struct {
	caFile string
	names  []string // common names or DNS names; none for whatever the CA has signed

	mu     sync.Mutex
	read   time.Time
	text   []byte
	signed *x509.CertPool
}

// caEvery is how often the file of the CA is read again, at the most.
const caEvery = 10 * time.Second

// apply makes a server ask for a certificate, and let in only who has one.
func (w *webhookClients) apply(c *tls.Config) {
	// Not ClientCAs, which would be read once.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = w.verify
}

func (w *webhookClients) verify(state tls.ConnectionState) error {
	authorities, err := w.authorities(time.Now())
	if err != nil {
		return err
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("the client shows no certificate")
	}
	client, between := state.PeerCertificates[0], x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		between.AddCert(certificate)
	}
	if _, err := client.Verify(x509.VerifyOptions{
		Roots: authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("the client's certificate is not signed by --webhook-client-ca-file: %w", err)
	}
	if len(w.names) == 0 {
		return nil
	}
	has := append([]string{client.Subject.CommonName}, client.DNSNames...)
	if slices.ContainsFunc(has, func(name string) bool { return slices.Contains(w.names, name) }) {
		return nil
	}
	return fmt.Errorf("the client's certificate is for %s, which is not one of --webhook-client-names", strings.Join(has, ", "))
}

// authorities returns those whose certificates count. A file that cannot be read, while
// it is being replaced, say, leaves those that were read before.
func (w *webhookClients) authorities(now time.Time) (*x509.CertPool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.signed != nil && now.Sub(w.read) < caEvery {
		return w.signed, nil
	}
	text, err := os.ReadFile(w.caFile)
	pool := x509.NewCertPool()
	switch {
	case err == nil && bytes.Equal(text, w.text) && w.signed != nil:
		w.read = now
	case err == nil && pool.AppendCertsFromPEM(text):
		w.read, w.text, w.signed = now, text, pool
	case w.signed == nil && err != nil:
		return nil, fmt.Errorf("read --webhook-client-ca-file: %w", err)
	case w.signed == nil:
		return nil, fmt.Errorf("--webhook-client-ca-file=%s: there is no certificate in it", w.caFile)
	}
	return w.signed, nil
}
