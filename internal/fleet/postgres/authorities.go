package postgres

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// errAuthorities : the folder of the administrator is not as it should be.
var errAuthorities = errors.New("the certificate authorities of the operator cannot be read (--database-ca-dir)")

// ReadAuthorities returns the certificate authorities of the system and those in the files
// of a folder, such as a mounted ConfigMap: all that end in .crt or .pem, in PEM. "" is no
// folder: nil, for those of the system alone.
func ReadAuthorities(folder string) (*x509.CertPool, error) {
	if folder == "" {
		return nil, nil //nolint:nilnil // that is how crypto/tls has it
	}
	files, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAuthorities, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	found := false
	for _, file := range files {
		if !slices.Contains([]string{".crt", ".pem"}, filepath.Ext(file.Name())) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, file.Name()))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errAuthorities, err)
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%w: %s holds no certificate", errAuthorities, file.Name())
		}
		found = true
	}
	if !found {
		return nil, fmt.Errorf("%w: no file in %s ends in .crt or .pem", errAuthorities, folder)
	}
	return pool, nil
}
