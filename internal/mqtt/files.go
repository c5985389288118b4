package mqtt

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
)

// fingerprint tells contents of the files apart, without keeping them.
type fingerprint [sha256.Size]byte

// access is what a connection needs to be let in, as it was when it was read.
type access struct {
	username    string
	password    string
	tls         *tls.Config // nil without TLS
	fingerprint fingerprint
}

// files reads what the options name. Kubernetes replaces the files of a Secret in place, so they are read again for
// every connection.
type files struct {
	options *Options
	target  target
	shorten int // how long a packet may be that comes; 0 is any length
}

// read reads every file once and builds access from exactly what was fingerprinted. A mix of an old and a new file
// (they are replaced together, but read one after the other) fails here or at the broker and is read anew with the
// next try.
func (f files) read() (access, error) {
	o := f.options
	content := map[string][]byte{}
	sum := sha256.New()
	for _, path := range []string{o.UsernameFile, o.PasswordFile, o.CAFile, o.CertFile, o.KeyFile} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return access{}, fmt.Errorf("reading connection settings: %w", err)
		}
		content[path] = data
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(data))))
		sum.Write(data)
	}
	a := access{username: f.target.username, password: f.target.password}
	sum.Sum(a.fingerprint[:0])
	if o.UsernameFile != "" {
		a.username = trimNewline(content[o.UsernameFile])
		a.password = trimNewline(content[o.PasswordFile])
	}
	if !f.target.tls {
		return a, nil
	}
	var err error
	a.tls, err = f.tlsConfig(content)
	return a, err
}

func (f files) tlsConfig(content map[string][]byte) (*tls.Config, error) {
	o := f.options
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.target.url.Hostname()}
	if o.ServerName != "" {
		config.ServerName = o.ServerName
	}
	if o.CAFile != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(content[o.CAFile]) {
			return nil, fmt.Errorf("reading %s: %w", o.CAFile, errNoCertificate)
		}
	}
	if o.CertFile != "" {
		pair, err := tls.X509KeyPair(content[o.CertFile], content[o.KeyFile])
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate %s with key %s: %w", o.CertFile, o.KeyFile, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

var errNoCertificate = errors.New("no certificate in PEM form found")

func trimNewline(data []byte) string { return strings.TrimRight(string(data), "\r\n") }
