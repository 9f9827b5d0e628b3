import socket,json,threading,subprocess,time,os
d='/tmp/weft/n1/kd'
FIRST="00000000-0000-0000-0000-0000000000f1"
nb=subprocess.Popen(['nbdkit','-f','-U',d+'/export.sock','memory','64M'],stderr=subprocess.DEVNULL)
time.sleep(.5)
c=socket.socket(socket.AF_UNIX); c.bind(d+'/weftd.sock'); c.listen()
def ctl():
    while True:
        s,_=c.accept(); s.makefile().readline()
        s.send((json.dumps({"id":1,"result":{"session":FIRST,"first":FIRST,"epoch":"7","path":d+'/export.sock'}})+'\n').encode())
threading.Thread(target=ctl,daemon=True).start()
h=subprocess.Popen(['/tmp/weft/t-K/debug/weft-holder','--run-dir',d],stderr=subprocess.DEVNULL)
time.sleep(.5)
s=socket.socket(socket.AF_UNIX); s.connect(d+'/holder.sock'); s.send((json.dumps({"id":3,"method":"open","params":{"id":"v","listen":d+"/g.sock","volume":"00000000-0000-0000-0000-00000000000a","session":FIRST,"snapshot":None,"writable":True}})+'\n').encode()); print(s.makefile().readline())
def fio(uri,qd):
    o=subprocess.run(['fio','--name=x','--ioengine=nbd','--uri='+uri,'--rw=randwrite','--bs=4k',f'--iodepth={qd}','--size=64m','--time_based','--runtime=4','--output-format=json'],capture_output=True,text=True).stdout
    j=json.loads(o[o.index('{'):])['jobs'][0]['write']; return round(j['clat_ns']['percentile']['50.000000']/1000,1), round(j['iops'])
for r in range(2):
  for qd in (1,32):
    print(qd,'direct',fio('nbd+unix:///?socket='+d+'/export.sock',qd),'holder',fio('nbd+unix:///v?socket='+d+'/g.sock',qd))
h.kill(); nb.kill()
