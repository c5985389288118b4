// Package selfcert makes the certificate of a server that nobody else makes one for, and
// keeps it with its authority in a Secret, so that all replicas serve with the same and callers
// can be told whom to trust: the key ca.crt of the Secret.
package selfcert

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Keys of the Secret.
const (
	KeyCA    = "ca.crt"
	keyCAKey = "ca.key"
	KeyCert  = corev1.TLSCertKey
	KeyKey   = corev1.TLSPrivateKeyKey
)

const (
	// authorityFor is how long the authority is good for, and certificateFor a certificate;
	// either is made anew when a third of that is left.
	authorityFor   = 10 * 365 * 24 * time.Hour
	certificateFor = 365 * 24 * time.Hour
	// lookEvery is how often the Secret is looked at: another replica may have renewed it.
	lookEvery = time.Hour
	// attempts is how often the Secret is read and written where others do so too.
	attempts = 10
)

// Keeper keeps a certificate in a Secret, which must exist, and renews it in time.
type Keeper struct {
	// Client may get and update the Secret.
	Client client.Client
	// Secret names it.
	Secret client.ObjectKey
	// Names are the host names and addresses that the certificate is for; at least one.
	Names []string
	// Clock is the time.
	Clock clock.WithTicker
	// Log gets what goes wrong.
	Log logr.Logger

	current atomic.Pointer[tls.Certificate]
}

// GetCertificate is for [tls.Config].
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("there is no certificate yet")
}

// Start implements [manager.Runnable]: it looks after the certificate until ctx ends.
func (k *Keeper) Start(ctx context.Context) error {
	ticker := k.Clock.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := k.Refresh(ctx); err != nil {
			k.Log.Error(err, "The certificate could not be looked after; the one at hand stays in use")
		}
	}
}

// NeedLeaderElection says that every replica looks after the certificate.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Refresh takes the certificate from the Secret, and makes a new one where that is not good.
func (k *Keeper) Refresh(ctx context.Context) error {
	for range attempts {
		var secret corev1.Secret
		if err := k.Client.Get(ctx, k.Secret, &secret); err != nil {
			return fmt.Errorf("read Secret %s, which keeps the certificate: %w", k.Secret, err)
		}
		if certificate := k.good(&secret); certificate != nil {
			k.current.Store(certificate)
			return nil
		}
		if err := k.renew(&secret); err != nil {
			return fmt.Errorf("make a certificate: %w", err)
		}
		// Of two replicas one writes, by the resourceVersion that both have read; the other
		// takes what it finds then.
		if err := k.Client.Update(ctx, &secret); err != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("write Secret %s: %w", k.Secret, err)
		}
	}
	return fmt.Errorf("write Secret %s: others write it all the time", k.Secret)
}

// good returns the certificate in the Secret if it is one for all names, made by the
// authority beside it, and neither ends soon.
func (k *Keeper) good(secret *corev1.Secret) *tls.Certificate {
	authority, _, err := parse(secret.Data[KeyCA], secret.Data[keyCAKey])
	if err != nil || k.endsSoon(authority, authorityFor) {
		return nil
	}
	certificate, err := tls.X509KeyPair(secret.Data[KeyCert], secret.Data[KeyKey])
	if err != nil || k.endsSoon(certificate.Leaf, certificateFor) || certificate.Leaf.CheckSignatureFrom(authority) != nil {
		return nil
	}
	for _, name := range k.Names {
		if certificate.Leaf.VerifyHostname(name) != nil {
			return nil
		}
	}
	return &certificate
}

func (k *Keeper) endsSoon(c *x509.Certificate, lifetime time.Duration) bool {
	return c.NotAfter.Sub(k.Clock.Now()) < lifetime/3
}

// renew puts a new certificate into the Secret, and a new authority where that ends soon: who
// trusts the old one must not be bothered more often than need be.
func (k *Keeper) renew(secret *corev1.Secret) error {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	authority, key, err := parse(secret.Data[KeyCA], secret.Data[keyCAKey])
	if err != nil || k.endsSoon(authority, authorityFor) {
		template := k.template("batchtask-ca", authorityFor)
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		if secret.Data[KeyCA], secret.Data[keyCAKey], err = issue(template, nil, nil); err != nil {
			return err
		}
		if authority, key, err = parse(secret.Data[KeyCA], secret.Data[keyCAKey]); err != nil {
			return err
		}
	}
	template := k.template(k.Names[0], certificateFor)
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range k.Names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	secret.Data[KeyCert], secret.Data[KeyKey], err = issue(template, authority, key)
	return err
}

func (k *Keeper) template(name string, lifetime time.Duration) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // never fails
	now := k.Clock.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name[:min(len(name), 64)], Organization: []string{"batchtask"}},
		NotBefore:    now.Add(-time.Hour), // clocks differ
		NotAfter:     now.Add(lifetime),
	}
}

// issue makes a certificate and its key, in PEM; without a parent one that signs itself.
func issue(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// parse reads an authority and its key.
func parse(certificate, key []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.X509KeyPair(bytes.TrimSpace(certificate), bytes.TrimSpace(key))
	if err != nil {
		return nil, nil, err
	}
	private, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, nil, errors.New("is no authority that was made here")
	}
	return pair.Leaf, private, nil
}

// ServiceNames returns the names of a Service, the most usual first, and others.
func ServiceNames(service, namespace string, others []string) []string {
	names := []string{service + "." + namespace + ".svc", service + "." + namespace, service, service + "." + namespace + ".svc.cluster.local", "localhost", "127.0.0.1"}
	for _, name := range others {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
