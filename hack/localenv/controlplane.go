package localenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const (
	controlPlaneStart = 2 * time.Minute
	// controlPlaneStop is short: nothing that they store is kept.
	controlPlaneStop = 5 * time.Second
)

// FindAssets returns the directory of etcd and kube-apiserver: override if it is
// set (KUBEBUILDER_ASSETS), else the one below root/bin/controlplane that was
// built last.
func FindAssets(root, override string) (string, error) {
	if override != "" {
		return override, nil
	}
	// kubectl is built last.
	built, err := filepath.Glob(filepath.Join(root, "bin", "controlplane", "*", "kubectl"))
	if err != nil {
		return "", fmt.Errorf("looking for the control plane: %w", err)
	}
	var newest string
	var newestAt time.Time
	for _, kubectl := range built {
		if info, err := os.Stat(kubectl); err == nil && info.ModTime().After(newestAt) {
			newest, newestAt = filepath.Dir(kubectl), info.ModTime()
		}
	}
	if newest == "" {
		return "", errors.New("there is no control plane: run `make controlplane`, or set KUBEBUILDER_ASSETS")
	}
	return newest, nil
}

// startControlPlane starts etcd and kube-apiserver with the project's custom
// resources and webhook configurations, and says where the latter expect the
// webhooks.
func (s *session) startControlPlane(ctx context.Context) (*rest.Config, envtest.WebhookInstallOptions, error) {
	none := envtest.WebhookInstallOptions{}
	programs, err := s.controlPlanePrograms()
	if err != nil {
		return nil, none, err
	}
	environment := &envtest.Environment{
		// Whatever the variables of envtest in the environment say: never touch a
		// cluster that is not ours.
		UseExistingCluster:       ptr.To(false),
		CRDDirectoryPaths:        []string{filepath.Join(s.Root, "config", "crd", "bases")},
		CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: controlPlaneStart},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: controlPlaneStart,
		ControlPlaneStopTimeout:  controlPlaneStop,
		WebhookInstallOptions:    envtest.WebhookInstallOptions{Paths: []string{filepath.Join(s.Root, "config", "webhook")}, MaxTime: controlPlaneStart},
	}
	api := environment.ControlPlane.GetAPIServer()
	etcd := &envtest.Etcd{}
	environment.ControlPlane.Etcd = etcd
	etcd.Path, api.Path = programs["etcd"], programs["kube-apiserver"]
	for name, streams := range map[string][]*io.Writer{"etcd": {&etcd.Out, &etcd.Err}, "kube-apiserver": {&api.Out, &api.Err}} {
		log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, none, fmt.Errorf("opening the log of %s: %w", name, err)
		}
		defer func() { _ = log.Close() }() // The programs have it open themselves.
		for _, stream := range streams {
			*stream = log
		}
	}
	// Start takes no context. It takes seconds, and its children do not outlive
	// this process, so whoever cannot wait interrupts a second time.
	config, err := environment.Start()
	s.onStop(func() error {
		_ = environment.Stop() // It has killed what did not end in time.
		return nil
	})
	if ctx.Err() != nil {
		return nil, none, context.Cause(ctx)
	}
	if err != nil {
		return nil, none, fmt.Errorf("the control plane did not start: %w; the end of %s: %s",
			err, relative(s.path("kube-apiserver.log")), tail(s.path("kube-apiserver.log")))
	}
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	return config, environment.WebhookInstallOptions, nil
}

// controlPlanePrograms are the paths by which envtest shall start them.
func (s *session) controlPlanePrograms() (map[string]string, error) {
	programs := map[string]string{}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		program := filepath.Join(s.Assets, name)
		if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no %s in %s: run `make controlplane`, or set KUBEBUILDER_ASSETS", name, s.Assets)
		}
		bound, err := bindToParent(program, s.path("tmp"))
		if err != nil {
			return nil, fmt.Errorf("preparing %s: %w", name, err)
		}
		programs[name] = bound
	}
	return programs, nil
}

// writeKubeConfig writes config as a kubeconfig file that only its owner can read.
func writeKubeConfig(path string, config *rest.Config, namespace string) error {
	const name = "batchtask-dev"
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name, Namespace: namespace}},
		CurrentContext: name,
	})
	if err != nil {
		return fmt.Errorf("making the kubeconfig: %w", err)
	}
	return writeFile(path, content)
}
